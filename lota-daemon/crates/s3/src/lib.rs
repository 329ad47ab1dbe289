//! S3 requests and responses, without I/O: addressing, classification, ranges, metadata, signatures.

pub mod address;
pub mod cache_control;
pub mod canonical;
mod chunk_data;
pub mod chunks;
pub mod credential;
pub mod endpoint;
pub mod error;
mod etag;
pub mod headers;
pub mod invalid_signature;
pub mod meta;
pub mod operation;
mod origin;
pub mod range;
pub mod request_headers;
pub mod signature_location;
pub mod signing;
pub mod storable;
#[cfg(test)]
mod test_request;
mod validator;
pub mod verification;
pub mod write;
mod write_result;

pub use address::{Bucket, Key, ObjectName, Zone};
pub use cache_control::CacheControl;
pub use chunk_data::{ChunkData, MalformedChunks, UploadForm};
pub use credential::{Credential, Secret};
pub use endpoint::{Endpoint, Endpoints};
pub use error::S3Error;
pub use etag::NormalEtag;
pub use meta::{Learned, ObjectMeta, ObjectVersion};
pub use operation::{GetObject, Operation};
pub use origin::{GatewayId, Origin};
pub use range::{ByteRange, MAX_SIZE, RangeRequest, Unsatisfiable};
pub use signature_location::SignedBy;
pub use storable::NotStorable;
pub use validator::Validator;
pub use write::{WriteObject, WriteOperation};
pub use write_result::{ResultReader, WriteResult};
