//! HTTP/1.1: connections in, requests out, and bodies that leave by `sendfile(2)` and `splice(2)`.

mod body;
mod connect;
mod expect;
pub mod framing;
mod head;
mod raw;
mod seats;
mod sendfile;
pub mod server;
mod splice;
mod stream;
pub mod upstream;
mod warm;

pub use body::{Body, BodyError, empty, full, incoming};
pub use expect::relay_continue;
pub use head::Head;
pub use raw::Raw;
pub use seats::{Seat, Seats};
pub use sendfile::{BodyFile, FileSlice, MAX_SLICE, SentBytes, Slice, Slices};
pub use splice::spliced;
