//! Contents of objects, of which each part proves to which write and to which place it belongs.

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;

use super::action::LoadAction;
use crate::{history::Object, lab::raw::Reply};

/// Length of a block in bytes.
pub(super) const BLOCK: usize = 16;
/// Number of blocks of large objects.
pub(super) const LARGE_BLOCKS: usize = 140_000;
/// Bound of the number of blocks of the other objects.
const SMALL_BLOCKS: u64 = 4000;

/// Returns the number of blocks of an object with this value.
fn blocks(is_large: bool, value: u64) -> usize {
    if is_large { LARGE_BLOCKS } else { usize::try_from(value * 7919 % SMALL_BLOCKS).unwrap_or(0) + 1 }
}

/// Returns a block of an object: its value and the number of the block, so that no block can be taken for another.
fn block(value: u64, index: usize) -> [u8; BLOCK] {
    let mut block = [b'0'; BLOCK];
    let (mut value, mut index) = (value, index);
    for place in (0..BLOCK / 2).rev() {
        block[place] += u8::try_from(value % 10).unwrap_or_default();
        block[place + BLOCK / 2] += u8::try_from(index % 10).unwrap_or_default();
        (value, index) = (value / 10, index / 10);
    }
    block
}

/// Returns the content of an object with this value.
pub(super) fn body(is_large: bool, value: u64) -> Vec<u8> {
    (0..blocks(is_large, value)).flat_map(|index| block(value, index)).collect()
}

/// Returns the object that a response shows.
pub(super) fn seen(reply: &Reply, action: LoadAction, is_large: bool) -> Result<Object> {
    if reply.status == StatusCode::NOT_FOUND {
        return Ok(Object::default());
    }
    let metadata = reply.header("x-amz-meta-value").parse().context("no value in the metadata")?;
    let kind = reply.header("content-type");
    ensure!(kind == format!("text/x-{metadata}"), "metadata of several writes: {metadata} and {kind}");
    let (first, count) = match action {
        LoadAction::Head => return Ok(Object { bytes: 0, metadata, version: 1 }),
        LoadAction::GetRange(first, count) => {
            ensure!(reply.status == StatusCode::PARTIAL_CONTENT, "a range was answered {}", reply.status);
            (first, count)
        }
        _ => (0, blocks(is_large, metadata)),
    };
    ensure!(reply.body.len() == count * BLOCK, "{} bytes instead of {}", reply.body.len(), count * BLOCK);
    let bytes = std::str::from_utf8(&reply.body[..BLOCK / 2])?.parse()?;
    let is_right = |(index, found): (usize, &[u8])| *found == block(bytes, first + index);
    ensure!(reply.body.chunks(BLOCK).enumerate().all(is_right), "other bytes than those of {bytes}");
    Ok(Object { bytes, metadata, version: 1 })
}
