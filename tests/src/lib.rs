//! The lab, the embedded gateway, and the tour that is both the demo and the end-to-end suite.

pub mod bench;
pub mod gateway;
pub mod lab;
pub mod tour;
