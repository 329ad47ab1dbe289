//! Checks that each module of the daemon uses only modules that `lib.rs` lists below it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Attribute, ImplItemFn, Item, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

use super::sources;

const INNER_CRATES: [&str; 3] = ["lota_cache", "lota_datapath", "lota_s3"];

/// Modules or files, each with those that it uses.
pub(super) type Graph = BTreeMap<String, BTreeSet<String>>;

/// Collects the root modules (`crate::…`) and inner crates (`lota_…`) that a file uses outside of its tests.
#[derive(Default)]
struct Named {
    names: BTreeSet<String>,
}

impl<'ast> Visit<'ast> for Named {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(ItemMod { attrs, .. }) | Item::Use(ItemUse { attrs, .. }) => attrs.as_slice(),
            Item::Impl(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            _ => &[],
        };
        if !attributes.iter().any(is_test) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !function.attrs.iter().any(is_test) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut segments = path.segments.iter().map(|segment| segment.ident.to_string());
        match segments.next() {
            Some(first) if first == "crate" => self.names.extend(segments.next()),
            Some(first) if INNER_CRATES.contains(&first.as_str()) => drop(self.names.insert(first)),
            _ => {}
        }
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        match &item.tree {
            UseTree::Path(path) if path.ident == "crate" => self.add(&path.tree),
            UseTree::Path(path) if INNER_CRATES.iter().any(|inner| path.ident == inner) => {
                self.names.insert(path.ident.to_string());
            }
            _ => {}
        }
    }
}

impl Named {
    fn add(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => drop(self.names.insert(path.ident.to_string())),
            UseTree::Name(name) => drop(self.names.insert(name.ident.to_string())),
            UseTree::Rename(rename) => drop(self.names.insert(rename.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree)),
            UseTree::Glob(_) => {}
        }
    }
}

pub(super) fn is_test(attribute: &Attribute) -> bool {
    let is_cfg_test = || {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    };
    attribute.path().is_ident("test") || is_cfg_test()
}

/// Adds the modules that the sources under `place` use to the entry of `module`.
fn read(place: &Path, module: &str, graph: &mut Graph) {
    for (_, file) in sources(place) {
        let mut named = Named::default();
        named.visit_file(&file);
        named.names.remove(module);
        graph.entry(module.to_owned()).or_default().extend(named.names);
    }
}

/// Removes what uses nothing, and what nothing uses, until only cycles and what connects them are left; returns these.
pub(super) fn cycles(mut graph: Graph) -> Graph {
    loop {
        let count = graph.len();
        let users: BTreeSet<String> = graph.keys().cloned().collect();
        graph.values_mut().for_each(|used| used.retain(|name| users.contains(name)));
        let used: BTreeSet<String> = graph.values().flatten().cloned().collect();
        graph.retain(|name, uses| !uses.is_empty() && used.contains(name));
        if graph.len() == count {
            return graph;
        }
    }
}

/// Returns the modules in the order of the table in `lib.rs`.
fn listed(lib: &str) -> Vec<&str> {
    let rows = lib.lines().filter(|line| line.starts_with("//! |"));
    rows.filter_map(|row| Some(row.split_once("[`")?.1.split_once("`]")?.0)).collect()
}

/// Returns the uses of modules that are not listed below the user.
fn upward(graph: &Graph, order: &[&str]) -> Vec<String> {
    let place = |module: &str| order.iter().position(|other| *other == module);
    let uses = graph.iter().flat_map(|(module, used)| used.iter().map(move |used| (module, used)));
    let is_upward = |(module, used): &(&String, &String)| match (place(module), place(used)) {
        (Some(user), Some(used)) => user >= used,
        _ => true,
    };
    uses.filter(is_upward).map(|(module, used)| format!("{module} -> {used}")).collect()
}

#[test]
fn modules_use_only_modules_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut graph = Graph::new();
    for entry in fs::read_dir(&root).unwrap() {
        let place = entry.unwrap().path();
        let module = place.file_stem().unwrap().to_string_lossy().into_owned();
        if !["lib", "main", "testing"].contains(&module.as_str()) {
            read(&place, &module, &mut graph);
        }
    }
    assert!(graph["proxy"].contains("gateway"), "cannot read the sources: {graph:?}");
    let lib = fs::read_to_string(root.join("lib.rs")).unwrap();
    let order = listed(&lib);
    for module in graph.keys() {
        assert!(order.contains(&module.as_str()), "add `{module}` to the table in lib.rs");
    }
    assert_eq!(upward(&graph, &order), [""; 0], "move shared code into a module below both");
}

#[test]
fn upward_uses_and_cycles_are_found() {
    let table =
        "//! | layer | module |\n//! | top | [`a`] | x |\n//! | | [`b`] | y |\n//! | | [`lota_s3`] | z |";
    let order = listed(table);
    assert_eq!(order, ["a", "b", "lota_s3"]);
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(upward(&graph(&[("a", "b"), ("a", "lota_s3"), ("b", "lota_s3")]), &order), [""; 0]);
    assert_eq!(
        upward(&graph(&[("a", "b"), ("b", "a"), ("b", "unlisted")]), &order),
        ["b -> a", "b -> unlisted"]
    );
    assert_eq!(cycles(graph(&[("a", "b"), ("b", "c"), ("a", "c")])), Graph::new());
    let cycle = graph(&[("b", "c"), ("c", "b")]);
    assert_eq!(cycles(graph(&[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")])), cycle);
}
