//! `Cache-Control` of GET requests, with LOTA's semantics, which differ from RFC 9111.

/// Use of the cache for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheControl {
    /// Serve from the cache, and store on a miss.
    #[default]
    Use,
    /// `no-cache`: serve from the cache, but do not store.
    LookOnly,
    /// `no-store`: do not use the cache at all.
    Bypass,
}

impl CacheControl {
    /// Parses every `Cache-Control` value of a request. The strictest directive wins; unknown ones are ignored.
    pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut result = Self::Use;
        for directive in values.flat_map(|value| value.split(',')).map(str::trim) {
            if directive.eq_ignore_ascii_case("no-store") {
                return Self::Bypass;
            }
            if directive.eq_ignore_ascii_case("no-cache") {
                result = Self::LookOnly;
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn directives() {
        for (values, expected) in [
            (vec![], CacheControl::Use),
            (vec!["max-age=0"], CacheControl::Use),
            (vec!["no-cache"], CacheControl::LookOnly),
            (vec!["No-Store"], CacheControl::Bypass),
            (vec!["no-cache, no-store"], CacheControl::Bypass),
            (vec!["max-age=0", " no-cache "], CacheControl::LookOnly),
            (vec!["no-cachet"], CacheControl::Use),
        ] {
            assert_eq!(CacheControl::parse(values.iter().copied()), expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn the_strictest_directive_of_all_values_wins(
            directives in prop::collection::vec("no-store|No-Cache|no-cache|[a-z0-9=-]{0,12}", 0..6), at in 0usize..6,
        ) {
            let has = |name: &str| directives.iter().any(|directive| directive.eq_ignore_ascii_case(name));
            let expected = match (has("no-store"), has("no-cache")) {
                (true, _) => CacheControl::Bypass,
                (false, true) => CacheControl::LookOnly,
                (false, false) => CacheControl::Use,
            };
            let (first, second) = directives.split_at(at.min(directives.len()));
            let values = [first.join(", "), second.join(",")];
            prop_assert_eq!(CacheControl::parse(values.iter().map(String::as_str)), expected);
        }
    }
}
