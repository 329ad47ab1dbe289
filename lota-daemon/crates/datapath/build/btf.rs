//! Type information (BTF) of the programs.

/// Name by which bpftool recognizes characters. Rust has no type of this name.
const CHARACTER: &[u8] = b"char\0";
/// Name of the type that the maps use for characters, and for nothing else.
const SIGNED_BYTE: &[u8] = b"i8\0";
/// Kind of an integer type (`include/uapi/linux/btf.h`).
const INTEGER: u32 = 1;

/// Names the type `i8` `char`, so that bpftool prints arrays of it as text. Returns `None` if the object has no BTF, or
/// no such type.
pub(crate) fn with_characters(mut object: Vec<u8>) -> Option<Vec<u8>> {
    let header = section(&object, b".BTF\0")?;
    let (offset, size) = (usize_at(&object, header + 24)?, usize_at(&object, header + 32)?);
    let mut btf = object.get(offset..offset + size)?.to_vec();

    // `struct btf_header`: where types and strings are, counted from its end.
    let [length, types, types_length, strings, strings_length] =
        [4, 8, 12, 16, 20].map(|at| u32_at(&btf, at).map(|number| number as usize));
    let (length, types, types_length) = (length?, types?, types_length?);
    let (strings, strings_length) = (strings?, strings_length?);
    let named = |name: usize| btf.get(length + strings + name..)?.starts_with(SIGNED_BYTE).then_some(());
    let mut at = length + types;
    let end = at + types_length;
    let signed_byte = loop {
        if at >= end {
            return None;
        }
        let (name, info) = (u32_at(&btf, at)?, u32_at(&btf, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, info as usize & 0xffff);
        if kind == INTEGER && named(name as usize).is_some() {
            break at;
        }
        // What follows the three words of each type (Documentation/bpf/btf.rst).
        at += 12
            + match kind {
                INTEGER | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * members,
                6 | 13 => 8 * members,
                _ => 0,
            };
    };
    let name = u32::try_from(strings_length).ok()?;
    btf[signed_byte..signed_byte + 4].copy_from_slice(&name.to_le_bytes());
    // Strings are the last part.
    if strings + strings_length + length != btf.len() {
        return None;
    }
    btf.extend_from_slice(CHARACTER);
    let strings_length = name + u32::try_from(CHARACTER.len()).ok()?;
    btf[20..24].copy_from_slice(&strings_length.to_le_bytes());

    object.resize(object.len().next_multiple_of(8), 0);
    let place = object.len() as u64;
    object[header + 24..header + 32].copy_from_slice(&place.to_le_bytes());
    object[header + 32..header + 40].copy_from_slice(&(btf.len() as u64).to_le_bytes());
    object.extend_from_slice(&btf);
    Some(object)
}

/// Returns the offset of a section's header in an ELF file of 64 bits, little-endian.
fn section(object: &[u8], name: &[u8]) -> Option<usize> {
    let (first, size) = (usize_at(object, 0x28)?, u16_at(object, 0x3a)?);
    let header = |index: usize| first + size * index;
    let names = usize_at(object, header(u16_at(object, 0x3e)?) + 24)?;
    (0..u16_at(object, 0x3c)?).map(header).find(|header| {
        let at = u32_at(object, *header).map(|at| names + at as usize);
        at.and_then(|at| object.get(at..)).is_some_and(|rest| rest.starts_with(name))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}
