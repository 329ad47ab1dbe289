//! The result of a write in the body of its response.

use quick_xml::{
    Reader,
    errors::Error,
    escape::resolve_predefined_entity,
    events::{BytesRef, Event},
};

use crate::etag::NormalEtag;

/// Maximum size of a tag, or of the text of an `ETag`, in bytes.
const MAX_TOKEN: usize = 64 << 10;
/// Maximum number of bytes that are added to an incomplete token at once.
const MAX_PIECE: usize = 16 << 10;

/// What the body of a `200` reports about a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// Success, and the ETag of the written object.
    Written(NormalEtag),
    /// A result without an ETag. Ceph RGW begins the result of a copy before it knows whether the copy succeeds, and ends it
    /// in this way if not.
    NoEtag,
    /// An error.
    Failed,
    /// None of these.
    Unrecognized,
}

/// Reads the body of a response to a write as it arrives. It keeps no more than one incomplete token in memory: Ceph RGW sends
/// an element for each part of a copy, and other gateways send spaces, until the result is known.
#[derive(Debug)]
pub struct ResultReader {
    /// Name of the root element of a result.
    root: &'static str,
    /// Bytes of a token that is incomplete.
    pending: Vec<u8>,
    /// Number of open elements.
    depth: u32,
    /// Whether the `ETag` of the root element is open.
    is_in_etag: bool,
    etag: String,
    is_known: bool,
}

impl ResultReader {
    /// Makes a reader of a result whose root element has this name.
    #[must_use]
    pub fn new(root: &'static str) -> Self {
        let (pending, etag) = (Vec::new(), String::new());
        Self { root, pending, depth: 0, is_in_etag: false, etag, is_known: false }
    }

    /// Reads the next bytes of the body. Returns the result once, when it is known. If the body ends before, it is
    /// [`WriteResult::Unrecognized`].
    pub fn read(&mut self, data: &[u8]) -> Option<WriteResult> {
        for piece in data.chunks(MAX_PIECE) {
            if self.is_known {
                return None;
            }
            self.pending.extend_from_slice(piece);
            self.skip_text();
            // Every token but text ends with this.
            let result = if piece.contains(&b'>') { self.parse() } else { None };
            let is_too_long = || self.pending.len() > MAX_TOKEN;
            let result = result.or_else(|| is_too_long().then_some(WriteResult::Unrecognized));
            if result.is_some() {
                (self.is_known, self.pending) = (true, Vec::new());
                return result;
            }
        }
        None
    }

    /// Parses the complete tokens, and removes them.
    fn parse(&mut self) -> Option<WriteResult> {
        let end = self.pending.iter().rposition(|byte| *byte == b'>')?;
        let pending = std::mem::take(&mut self.pending);
        let mut reader = Reader::from_reader(&pending[..=end]);
        let config = reader.config_mut();
        (config.expand_empty_elements, config.check_end_names) = (true, false);
        (config.allow_unmatched_ends, config.allow_dangling_amp) = (true, true);
        let mut parsed = 0;
        let result = loop {
            match reader.read_event() {
                // The end of the token is not here yet: this was the end of a tag in a comment.
                Ok(Event::Eof) | Err(Error::Syntax(_)) => break None,
                Err(_) => break Some(WriteResult::Unrecognized),
                Ok(event) => {
                    parsed = usize::try_from(reader.buffer_position()).unwrap_or(pending.len());
                    if let Some(result) = self.event(&event) {
                        break Some(result);
                    }
                }
            }
        };
        self.pending.extend_from_slice(&pending[parsed..]);
        self.skip_text();
        result
    }

    /// Drops text that is not that of the `ETag`, up to the next tag.
    fn skip_text(&mut self) {
        if !self.is_in_etag && self.pending.first() != Some(&b'<') {
            let tag = self.pending.iter().position(|byte| *byte == b'<').unwrap_or(self.pending.len());
            self.pending.drain(..tag);
        }
    }

    fn event(&mut self, event: &Event<'_>) -> Option<WriteResult> {
        match event {
            Event::Start(element) => {
                let name = element.local_name();
                match (self.depth, name.as_ref()) {
                    (0 | 1, b"Error") => return Some(WriteResult::Failed),
                    (0, root) if root != self.root.as_bytes() => return Some(WriteResult::Unrecognized),
                    (1, b"ETag") => {
                        self.is_in_etag = true;
                        self.etag.clear();
                    }
                    _ if self.is_in_etag => self.add(None),
                    _ => {}
                }
                self.depth = self.depth.saturating_add(1);
            }
            Event::End(element) => match self.depth {
                0 => return Some(WriteResult::Unrecognized),
                1 if element.local_name().as_ref() != self.root.as_bytes() => {
                    return Some(WriteResult::Unrecognized);
                }
                1 => {
                    let etag = NormalEtag::parse(&self.etag);
                    return Some(etag.map_or(WriteResult::NoEtag, WriteResult::Written));
                }
                depth => {
                    self.is_in_etag &= depth > 2;
                    self.depth -= 1;
                }
            },
            Event::Text(text) if self.is_in_etag => self.add(text.decode().ok().as_deref()),
            Event::CData(text) if self.is_in_etag => self.add(text.decode().ok().as_deref()),
            Event::GeneralRef(reference) if self.is_in_etag => self.add(resolve(reference).as_deref()),
            _ => {}
        }
        None
    }

    /// Adds to the text of the `ETag`; `None` makes it no ETag.
    fn add(&mut self, text: Option<&str>) {
        if self.etag.len() < MAX_TOKEN {
            // No ETag contains this character.
            self.etag.push_str(text.unwrap_or("\0"));
        }
    }
}

fn resolve(reference: &BytesRef<'_>) -> Option<String> {
    match reference.resolve_char_ref() {
        Ok(Some(character)) => Some(character.into()),
        Ok(None) => resolve_predefined_entity(&reference.decode().ok()?).map(str::to_owned),
        Err(_) => None,
    }
}

#[cfg(test)]
#[path = "write_result_tests.rs"]
mod tests;
