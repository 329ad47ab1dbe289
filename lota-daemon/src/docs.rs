//! Documents that are made from the code: the files in `docs/` must be what the code says.

use std::{env, fs, path::Path};

/// Compares a document with its file; with `LOTA_WRITE_DOCS` in the environment, writes it first, which is what `cargo
/// xtask docs` does.
pub(crate) fn check(file: &str, document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    if env::var_os("LOTA_WRITE_DOCS").is_some() {
        fs::write(&path, document).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == document, "docs/{file} is out of date: run `cargo xtask docs`");
}
