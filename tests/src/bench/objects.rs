//! Objects of benchmarks: sparse files that nginx serves as a gateway, and presigned URLs for them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use hyper::Method;
use lota_cache::placement::{NodeName, Placement};
use lota_s3::{GatewayId, ObjectName};

use crate::lab::{
    ADMIN, NODES,
    raw::{Request, Signing},
};

/// Bucket of the objects.
pub const BUCKET: &str = "bench";

/// Creates the file names of `objects` cached objects of `bytes` bytes. The files are empty, since a restart reads only
/// names.
///
/// # Errors
/// If a file cannot be created.
pub fn name_objects(cache: &Path, objects: usize, bytes: u64) -> Result<()> {
    for object in 0..objects {
        let version =
            format!("{:032x}", (object as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let name = format!("{version}-{object:032x}-{bytes:x}.object");
        File::create(cache.join("lota-cache/v4").join(&version[..2]).join(name))?;
    }
    Ok(())
}

/// Objects that node 1 owns.
#[derive(Debug)]
pub struct Objects {
    root: PathBuf,
    placement: Placement,
    gateway: GatewayId,
    made: u64,
    /// Paths and queries of their URLs, in order of creation.
    pub urls: Vec<String>,
}

impl Objects {
    /// Creates an empty set below `lab`, behind `gateway`, for nodes of equal capacity.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn new(lab: &Path, gateway: &str) -> Result<Self> {
        let root = lab.join("objects");
        fs::create_dir_all(root.join(BUCKET))?;
        let nodes = (1..=NODES).map(|node| (NodeName(format!("n{node}")), 1 << 30));
        Ok(Self {
            root,
            placement: Placement::new(nodes),
            gateway: gateway.into(),
            made: 0,
            urls: Vec::new(),
        })
    }

    /// Returns their folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates an object of `bytes` bytes; returns a request that reads it.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn make(&mut self, bytes: u64) -> Result<Request> {
        loop {
            let key = format!("object-{}", self.made);
            self.made += 1;
            let name =
                ObjectName::from_parts(self.gateway.clone(), BUCKET, &key, None).context("no such name")?;
            if self.placement.first(&name, 1).first().is_none_or(|first| first.0 != "n1") {
                continue;
            }
            File::create(self.root.join(BUCKET).join(&key))?.set_len(bytes)?;
            let get = Request::new(Method::GET, "cwlota.com", &format!("/{BUCKET}/{key}"));
            let get = get.sign(&ADMIN, Signing::Presigned)?;
            self.urls.push(get.target.clone());
            return Ok(get);
        }
    }
}
