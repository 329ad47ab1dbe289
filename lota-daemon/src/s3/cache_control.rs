//! `Cache-Control` on a GET, with the meanings LOTA gives it, which are not RFC 9111's.

/// What a client wants of the cache for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheControl {
    /// Serve from the cache, store what is not there.
    #[default]
    Use,
    /// `no-cache`: serve from the cache, but do not store.
    LookOnly,
    /// `no-store`: straight from the backend; the cache is not touched.
    Bypass,
}

impl CacheControl {
    /// Reads every `Cache-Control` value of a request; the strictest directive wins, unknown ones are ignored.
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
        fn any_text_parses(value in ".*") {
            let _ = CacheControl::parse([value.as_str()].into_iter());
        }
    }
}
