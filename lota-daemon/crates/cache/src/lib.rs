//! Cache of objects on this node's disks, keyed by object version.
//!
//! An overwritten object is another file, so no entry is ever invalidated: a version that the gateway no longer
//! names is not read again and is evicted as least recently used.

mod available;
mod begin;
mod cache;
mod chunk;
mod chunker;
mod compare;
mod config;
mod disk;
mod evict;
mod file;
mod fill;
mod fscrypt;
mod ids;
mod index;
mod leaders;
mod lookup;
mod lru;
mod new_file;
mod no_room;
mod object;
mod own_folder;
mod partial;
mod partial_objects;
mod pending;
mod permit;
mod pin;
mod pin_table;
pub mod placement;
mod plan;
mod progress;
mod range_fill;
mod ranges;
mod reader;
mod record;
mod room;
pub mod shares;
mod sort_pins;
mod status;
mod store;
mod stripe;
mod upkeep;
mod upload;
mod upload_hash;
mod verify;
mod warm;

pub use available::Broken;
pub use begin::Join;
pub use cache::Cache;
pub use compare::{Corrupt, compare, free, usage};
pub use config::{AfterWrite, CacheConfig, FillConfig};
pub use evict::{EvictSelector, EvictedTotal};
pub use file::{BodyFile, FileSlice, MAX_SLICE};
pub use fill::{Fill, FillError, FillOptions, FillSource, SourceError};
pub use fscrypt::{Encryption, can_encrypt};
pub use leaders::Lead;
pub use no_room::NoRoom;
pub use object::Object;
pub use own_folder::{pins_file, uninstall};
pub use permit::ReadPermit;
pub use pin::{PinUsage, PinnedPrefix, pinnable};
pub use plan::{Admission, CachePlan, DiskPlan};
pub use range_fill::RangeFill;
pub use reader::{Piece, Reader};
pub use room::objects_by_memory;
pub use status::{DiskStatus, Usage};
pub use store::{ListedObject, list};
pub use stripe::{Stripe, StripeLength};
pub use upload::{StoredUpload, Upload, UploadEnd};

#[cfg(test)]
mod tests;

#[cfg(test)]
mod storage_tests;

#[cfg(test)]
mod stripe_tests;
