//! Pages of the keys in a bucket.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::store::Object;

/// Which keys a page is to have.
pub(super) struct Wanted<'a> {
    /// Only keys that start so.
    pub(super) prefix: &'a str,
    /// Keys that have this behind the prefix are rolled up to it.
    pub(super) delimiter: Option<&'a str>,
    /// Only what sorts behind this key or rolled-up prefix.
    pub(super) after: Option<&'a str>,
    /// At most so many keys and rolled-up prefixes together.
    pub(super) most: usize,
}

/// A page of a list, sorted by the bytes of the keys.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, Arc<Object>)>,
    pub(super) prefixes: Vec<String>,
    /// The last entry, if more follow: the next page comes after it.
    pub(super) last_of_more: Option<String>,
}

pub(super) fn list(objects: &BTreeMap<String, Arc<Object>>, wanted: &Wanted<'_>) -> Page {
    let mut page = Page::default();
    let mut last: Option<String> = None;
    if wanted.most == 0 {
        return page;
    }
    let from = match wanted.after {
        Some(after) if after >= wanted.prefix => Bound::Excluded(after),
        _ => Bound::Included(wanted.prefix),
    };
    for (key, object) in objects.range::<str, _>((from, Bound::Unbounded)) {
        if !key.starts_with(wanted.prefix) {
            break;
        }
        let rolled_up = roll_up(wanted, key);
        if rolled_up.is_some() && (rolled_up == wanted.after || rolled_up == last.as_deref()) {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == wanted.most {
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

/// `key` up to the first delimiter behind the prefix, with it; `None` if there is none.
fn roll_up<'a>(wanted: &Wanted<'_>, key: &'a str) -> Option<&'a str> {
    let delimiter = wanted.delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let behind = wanted.prefix.len();
    let found = key.get(behind..)?.find(delimiter)?;
    key.get(..behind + found + delimiter.len())
}
