//! Verifies that each type of the workspace has a unique name, so that rustdoc and stack traces are unambiguous.

use std::{collections::BTreeMap, path::Path};

use syn::{Item, ItemEnum, ItemStruct, ItemTrait};

use super::sources;

/// Names of types, each with the files that define one.
type Definitions = BTreeMap<String, Vec<String>>;

/// Folders with the workspace's own code.
const FOLDERS: [&str; 7] = [
    "lota-common/src",
    "lota-ebpf/src",
    "lota-daemon/src",
    "lota-daemon/crates/cache/src",
    "lota-daemon/crates/datapath/src",
    "lota-daemon/crates/fence/src",
    "lota-daemon/crates/s3/src",
];

/// Adds the types that the sources under `place` define, except those of tests.
fn read(place: &Path, definitions: &mut Definitions) {
    for (path, file) in sources(place) {
        for item in file.items {
            if let Item::Struct(ItemStruct { ident, .. })
            | Item::Enum(ItemEnum { ident, .. })
            | Item::Trait(ItemTrait { ident, .. }) = item
            {
                definitions.entry(ident.to_string()).or_default().push(path.display().to_string());
            }
        }
    }
}

#[test]
fn type_names_are_unique() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut definitions = Definitions::new();
    FOLDERS.iter().for_each(|folder| read(&root.join(folder), &mut definitions));
    assert!(definitions.contains_key("GatewayConfig"), "cannot read the sources");
    definitions.retain(|_, files| files.len() > 1);
    assert!(
        definitions.is_empty(),
        "call a section XConfig, a report XStatus, a value shared with the kernel RawX: {definitions:#?}"
    );
}
