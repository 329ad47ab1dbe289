//! Pagination of the keys in a bucket.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::store::Object;

/// Parameters of a page.
pub(super) struct PageQuery<'a> {
    /// Prefix of the keys.
    pub(super) prefix: &'a str,
    /// Delimiter; keys that contain it after the prefix are grouped.
    pub(super) delimiter: Option<&'a str>,
    /// Key or common prefix after which the page starts.
    pub(super) after: Option<&'a str>,
    /// Maximum number of keys and common prefixes.
    pub(super) max_keys: usize,
}

/// A page of a list, sorted by bytes.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, Arc<Object>)>,
    pub(super) prefixes: Vec<String>,
    /// The last entry, if more follow; the next page starts after it.
    pub(super) last_of_more: Option<String>,
}

pub(super) fn list(objects: &BTreeMap<String, Arc<Object>>, query: &PageQuery<'_>) -> Page {
    let mut page = Page::default();
    let mut last: Option<String> = None;
    if query.max_keys == 0 {
        return page;
    }
    let from = match query.after {
        Some(after) if after >= query.prefix => Bound::Excluded(after),
        _ => Bound::Included(query.prefix),
    };
    for (key, object) in objects.range::<str, _>((from, Bound::Unbounded)) {
        if !key.starts_with(query.prefix) {
            break;
        }
        let rolled_up = roll_up(query, key);
        if rolled_up.is_some() && (rolled_up == query.after || rolled_up == last.as_deref()) {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == query.max_keys {
            page.last_of_more = last;
            break;
        }
        match rolled_up {
            Some(prefix) => page.prefixes.push(prefix.to_owned()),
            None => page.objects.push((key.clone(), Arc::clone(object))),
        }
        last = Some(rolled_up.unwrap_or(key).to_owned());
    }
    page
}

/// Returns the common prefix of `key`, up to and including the first delimiter after the prefix; `None` if there is
/// none.
fn roll_up<'a>(query: &PageQuery<'_>, key: &'a str) -> Option<&'a str> {
    let delimiter = query.delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let behind = query.prefix.len();
    let found = key.get(behind..)?.find(delimiter)?;
    key.get(..behind + found + delimiter.len())
}
