//! Sizes as configurations state them.

use std::{format, string::String};

use serde::{Deserialize, Deserializer, de};

/// Number of bytes, such as `10GiB`, `512MiB` or `4096`.
///
/// ```
/// use lota_common::ByteSize;
///
/// assert_eq!(ByteSize::parse("512MiB"), Ok(ByteSize(512 << 20)));
/// assert!(ByteSize::parse("512 megabytes").is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Parses a number with an optional unit: `B`, `KiB`, `MiB`, `GiB`, `TiB` or `PiB`.
    ///
    /// # Errors
    /// A message that shows valid sizes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size such as `10GiB`, `512MiB` or `4096`");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            "PiB" => 50,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
