//! What S3 means by a request, without any I/O.

pub mod address;
pub mod cache_control;
pub mod chunks;
pub mod error;
pub mod headers;
pub mod meta;
pub mod operation;
pub mod range;
pub mod sign;
pub mod signature;

pub use address::{Bucket, Key, ObjectName, Zone};
pub use cache_control::CacheControl;
pub use error::S3Error;
pub use meta::{ObjectMeta, ObjectVersion, Validator};
pub use operation::{GetObject, Operation};
pub use range::{ByteRange, RangeRequest, Unsatisfiable};
