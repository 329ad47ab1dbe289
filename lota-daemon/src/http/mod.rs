//! HTTP/1.1: connections in, requests out, and bodies that leave by `sendfile(2)` and `splice(2)`.

mod bandwidth;
mod body;
mod connect;
mod connection_limiter;
mod expect;
pub mod framing;
mod head;
mod head_budget;
mod head_timer;
mod meter;
mod raw;
mod reachability;
mod reject;
mod sendfile;
pub mod server;
mod slots;
mod splice;
mod stray;
mod stream;
pub mod tls;
mod tls_connection;
pub mod upstream;

pub use bandwidth::{ConnectionPace, PodBandwidth, Sending};
pub use body::{Body, BodyError, empty, full, incoming};
pub use connection_limiter::{ConnectionLimiter, ConnectionPermit};
pub use expect::relay_continue;
pub use head::RequestHead;
pub use head_budget::{HeadBudget, HeadCharge};
pub use meter::Meter;
pub use raw::Raw;
pub(crate) use reachability::ReachabilityProbe;
pub use reject::{BodyReject, Reject};
pub use sendfile::{SentBytes, ServerStream, Slice, Slices};
pub use slots::{Slot, SlotMarker, Slots};
pub use splice::spliced;
pub use tls_connection::TlsConnection;
