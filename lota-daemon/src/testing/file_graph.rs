//! Checks that the files of an inner crate, and those of the eBPF programs, do not use each other in cycles.
//!
//! A file uses another one if it names an item that the other defines, by any path: through `crate`, `super`, `self`, a
//! child module, or a re-export, also inside of a macro's arguments. An inherent method belongs to the file of its `impl`
//! block, which may be another one than its type's: a file that calls it uses that file, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    slice,
};

use syn::{
    Expr, ExprMethodCall, File, Ident, ImplItem, ImplItemFn, Item, ItemImpl, ItemMod, ItemUse, Macro, Type,
    UseTree, Visibility,
    visit::{self, Visit},
};

use super::{
    module_graph::{Graph, cycles, is_test},
    sources,
};

/// Segments of a path.
type Segments = Vec<String>;

/// Names that one file defines and uses.
#[derive(Default)]
struct FileNames {
    /// Path of the module that the file is.
    module: Segments,
    /// Names of the items that the file defines.
    items: BTreeSet<String>,
    /// Imported names, each with the path as written.
    imports: BTreeMap<String, Segments>,
    /// Paths as written, without those of re-exports.
    paths: BTreeSet<Segments>,
    /// Inherent methods in this file that others can call, with their types.
    methods: BTreeSet<(String, String)>,
    /// Methods called on `self`, with the type.
    own_calls: BTreeSet<(String, String)>,
    /// Methods called on anything else.
    calls: BTreeSet<String>,
    /// Child modules that exist only in tests.
    test_modules: BTreeSet<String>,
    /// The type whose `impl` block is visited.
    type_name: Option<String>,
}

impl<'ast> Visit<'ast> for FileNames {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Mod(item) => (&item.attrs, None),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Union(item) => (&item.attrs, Some(&item.ident)),
            Item::Use(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if attributes.iter().any(is_test) {
            if let Item::Mod(ItemMod { ident, .. }) = item {
                self.test_modules.insert(ident.to_string());
            }
            return;
        }
        self.items.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        let name = type_name(&block.self_ty);
        if block.trait_.is_none()
            && let Some(name) = &name
        {
            let methods = block.items.iter().filter_map(|item| match item {
                ImplItem::Fn(method) if !matches!(method.vis, Visibility::Inherited) => {
                    Some(method.sig.ident.to_string())
                }
                _ => None,
            });
            self.methods.extend(methods.map(|method| (name.clone(), method)));
        }
        self.type_name = name;
        visit::visit_item_impl(self, block);
        self.type_name = None;
    }

    fn visit_impl_item_fn(&mut self, method: &'ast ImplItemFn) {
        if !method.attrs.iter().any(is_test) {
            visit::visit_impl_item_fn(self, method);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import(&item.tree, &[], matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add_path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let is_own = matches!(&*call.receiver, Expr::Path(receiver) if receiver.path.is_ident("self"));
        self.add_call(is_own, call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.add_tokens(&call.tokens.to_string());
        visit::visit_macro(self, call);
    }
}

impl FileNames {
    fn import(&mut self, tree: &UseTree, parent: &[String], is_private: bool) {
        let joined = |name: &Ident| [parent, &[name.to_string()]].concat();
        let (path, name) = match tree {
            UseTree::Path(path) => return self.import(&path.tree, &joined(&path.ident), is_private),
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.import(tree, parent, is_private));
            }
            UseTree::Glob(_) => (parent.to_vec(), None),
            UseTree::Name(name) if name.ident == "self" => (parent.to_vec(), parent.last().cloned()),
            UseTree::Name(name) => (joined(&name.ident), Some(name.ident.to_string())),
            UseTree::Rename(rename) if rename.ident == "self" => {
                (parent.to_vec(), Some(rename.rename.to_string()))
            }
            UseTree::Rename(rename) => (joined(&rename.ident), Some(rename.rename.to_string())),
        };
        if is_private || name.is_none() {
            self.paths.insert(path.clone());
        }
        self.imports.extend(name.map(|name| (name, path)));
    }

    fn add_path(&mut self, mut path: Segments) {
        if path[0] == "Self"
            && let Some(name) = &self.type_name
        {
            path[0].clone_from(name);
        }
        self.paths.insert(path);
    }

    fn add_call(&mut self, is_own: bool, method: String) {
        match &self.type_name {
            Some(name) if is_own => drop(self.own_calls.insert((name.clone(), method))),
            _ => drop(self.calls.insert(method)),
        }
    }

    /// Adds the paths and method calls in a macro's arguments.
    fn add_tokens(&mut self, arguments: &str) {
        let tokens = tokens(arguments);
        let is_name = |token: &str| token.starts_with(|first: char| first.is_alphabetic() || first == '_');
        let mut rest = &tokens[..];
        while let [first, after @ ..] = rest {
            rest = after;
            if first == "." {
                if let [method, open, ..] = rest
                    && is_name(method)
                    && open == "("
                {
                    let receiver = &tokens[..tokens.len() - rest.len() - 1];
                    let is_own = matches!(receiver, [.., before, last] if last == "self" && before != ".");
                    self.add_call(is_own, method.clone());
                }
                rest = rest.get(1..).unwrap_or_default();
            } else if is_name(first) {
                let mut path = vec![first.clone()];
                while let [one, two, name, after @ ..] = rest
                    && (one, two) == (&":".to_owned(), &":".to_owned())
                    && is_name(name)
                {
                    path.push(name.clone());
                    rest = after;
                }
                // A single name in lower case may be a local variable.
                if path.len() > 1 || path[0].starts_with(char::is_uppercase) {
                    self.add_path(path);
                }
            }
        }
    }
}

/// The files of a crate.
struct Files(BTreeMap<Segments, FileNames>);

impl Files {
    fn read(root: &Path) -> Self {
        let parsed = sources(root).into_iter().map(|(path, file)| {
            let relative = path.strip_prefix(root).unwrap().with_extension("");
            (relative.to_string_lossy().into_owned(), file)
        });
        Self::of(parsed)
    }

    /// Takes files by their paths in the folder of sources, without extension.
    fn of(parsed: impl IntoIterator<Item = (String, File)>) -> Self {
        let mut files = BTreeMap::new();
        for (path, file) in parsed {
            let mut module: Segments = path.split('/').map(str::to_owned).collect();
            module.pop_if(|last| last == "mod" || last == "lib");
            let mut names = FileNames { module: module.clone(), ..FileNames::default() };
            names.visit_file(&file);
            files.insert(module, names);
        }
        let test_modules = |file: &FileNames| {
            let names = file.test_modules.iter();
            names.map(|name| [&file.module[..], slice::from_ref(name)].concat()).collect::<Vec<_>>()
        };
        let tests: Vec<Segments> = files.values().flat_map(test_modules).collect();
        files.retain(|module, _| !tests.contains(module));
        Self(files)
    }

    /// Converts a path that a file contains to one from the crate's root; `None` if it leads out of the crate, or to an
    /// item of the file.
    fn absolute(&self, file: &FileNames, path: &[String]) -> Option<Segments> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([&file.module, rest].concat()),
            "super" => {
                let supers = path.iter().take_while(|segment| *segment == "super").count();
                let parent = file.module.get(..file.module.len().checked_sub(supers)?)?;
                Some([parent, &path[supers..]].concat())
            }
            _ => match file.imports.get(first) {
                Some(import) if import[0] != *first => Some([&self.absolute(file, import)?, rest].concat()),
                _ => {
                    let child = [&file.module[..], path].concat();
                    self.0.contains_key(&child[..=file.module.len()]).then_some(child)
                }
            },
        }
    }

    /// Returns the files that a path from the crate's root uses: that of the item, and that of the method after it.
    fn targets(&self, path: &[String]) -> Vec<&FileNames> {
        let depth = (0..=path.len()).rev().find(|depth| self.0.contains_key(&path[..*depth])).unwrap_or(0);
        let module = &self.0[&path[..depth]];
        // A module alone: its items are named by other paths.
        let Some(item) = path.get(depth) else { return Vec::new() };
        if !module.items.contains(item)
            && let Some(import) = module.imports.get(item)
            && let Some(import) = self.absolute(module, import)
        {
            return self.targets(&[&import[..], &path[depth + 1..]].concat());
        }
        let method = path.get(depth + 1).and_then(|method| self.file_of(item, method));
        [module].into_iter().chain(method).collect()
    }

    /// Returns the file of an inherent method.
    fn file_of(&self, type_name: &str, method: &str) -> Option<&FileNames> {
        let key = (type_name.to_owned(), method.to_owned());
        self.0.values().find(|file| file.methods.contains(&key))
    }

    /// Returns the files with the methods that a file calls. The type of a receiver is unknown: every type counts that has
    /// such a method in another file than its own, and that the caller names in one of these paths.
    fn called<'a>(&'a self, file: &'a FileNames, paths: &[Segments]) -> impl Iterator<Item = &'a FileNames> {
        let own = file.own_calls.iter().filter_map(|(name, method)| self.file_of(name, method));
        let is_named = |name: &String| {
            file.items.contains(name) || paths.iter().any(|path| path.iter().any(|segment| segment == name))
        };
        let is_called = move |other: &&FileNames| {
            let away = other.methods.iter().filter(|(name, _)| !other.items.contains(name));
            away.filter(|(_, method)| file.calls.contains(method)).any(|(name, _)| is_named(name))
        };
        own.chain(self.0.values().filter(is_called).collect::<Vec<_>>())
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for file in self.0.values() {
            let paths: Vec<_> = file.paths.iter().filter_map(|path| self.absolute(file, path)).collect();
            let named = paths.iter().flat_map(|path| self.targets(path));
            let used = named.chain(self.called(file, &paths)).filter(|used| used.module != file.module);
            graph.insert(name(&file.module), used.map(|used| name(&used.module)).collect());
        }
        graph
    }
}

fn name(module: &[String]) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("/") }
}

fn type_name(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

/// Splits source text into names and single characters. Literals are left out.
fn tokens(text: &str) -> Vec<String> {
    let (mut tokens, mut chars) = (Vec::<String>::new(), text.chars().peekable());
    while let Some(first) = chars.next() {
        match first {
            '"' => {
                let mut is_escaped = false;
                let _ = chars.by_ref().find(|next| {
                    let ends = *next == '"' && !is_escaped;
                    is_escaped = *next == '\\' && !is_escaped;
                    ends
                });
            }
            _ if first.is_alphanumeric() || first == '_' => {
                let mut token = first.to_string();
                while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    token.push(next);
                }
                tokens.push(token);
            }
            _ if first.is_whitespace() => {}
            _ => tokens.push(first.to_string()),
        }
    }
    tokens
}

#[test]
fn files_of_crates_have_no_cycles() {
    for (place, user, used) in [
        ("crates/cache", "index/partial", "index"),
        ("crates/datapath", "redirection", "beside"),
        ("crates/s3", "operation", "signature_location"),
        // A library and a program: paths through `lota_ebpf` lead from one to the other, never back.
        ("../lota-ebpf", "pod", "redirect"),
    ] {
        let graph = Files::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(place).join("src")).graph();
        assert!(graph[user].contains(used), "cannot read the sources of {place}: {graph:?}");
        assert_eq!(cycles(graph), Graph::new(), "{place}: move shared code into a file below both");
    }
}

/// Returns the uses among files with these sources, by their paths.
fn uses(files: &[(&str, &str)]) -> Vec<String> {
    let parsed = files.iter().map(|(path, source)| ((*path).to_owned(), syn::parse_file(source).unwrap()));
    let graph = Files::of(parsed).graph();
    let uses = graph.iter().flat_map(|(file, used)| used.iter().map(move |used| format!("{file} -> {used}")));
    uses.collect()
}

#[test]
fn items_are_found_behind_re_exports() {
    let lib = ("lib", "mod a; mod b; mod c; pub use a::A; pub struct Own;");
    let group = ("c/mod", "mod inner; pub(crate) use inner::C;");
    let (a, b, inner) = ("pub struct A;", "use crate::{A, c::C, Own}; fn f(_: A, _: C) {}", "pub struct C;");
    let all = [lib, ("a", a), ("b", b), group, ("c/inner", inner)];
    assert_eq!(uses(&all), ["b -> a", "b -> c/inner", "b -> lib"]);
}

#[test]
fn children_use_their_parents() {
    let parent = "mod child; use self::child::g; pub fn f() { g() }";
    let all = [("lib", "mod p;"), ("p", parent), ("p/child", "pub fn g() { super::f() }")];
    assert_eq!(uses(&all), ["p -> p/child", "p/child -> p"]);
}

#[test]
fn methods_belong_to_the_file_of_their_block() {
    let lib = ("lib", "mod t; mod more; mod user; mod other;");
    let t = ("t", "pub struct T; impl T { pub fn home(&self) { self.away(); } }");
    let more =
        ("more", "use crate::t::T; impl T { pub fn away(&self) { self.private() } fn private(&self) {} }");
    let user = ("user", "use crate::t::T; fn f(t: &T) { t.away(); }");
    let other = ("other", "fn f(t: &Unknown) { t.away(); t.private(); }");
    let expected = ["more -> t", "t -> more", "user -> more", "user -> t"];
    assert_eq!(uses(&[lib, t, more, user, other]), expected);
    let by_path = ("user", "fn f() { crate::t::T::away(&x) }");
    assert_eq!(uses(&[lib, t, more, by_path, other]), expected);
}

#[test]
fn macros_are_read_and_tests_are_not() {
    let lib = ("lib", "mod a; mod b; #[cfg(test)] mod checks;");
    let b = ("b", r#"use crate::a; fn f() { println!("crate::lib {}", a::NUMBER); }"#);
    let all = [lib, ("a", "pub const NUMBER: u8 = 1;"), b, ("checks", "use crate::a::NUMBER;")];
    assert_eq!(uses(&all), ["b -> a"]);
    let test = ("b", "#[cfg(test)] mod tests { use crate::a::NUMBER; } #[test] fn f() { crate::a::NUMBER; }");
    assert_eq!(uses(&[lib, ("a", "pub const NUMBER: u8 = 1;"), test]), [""; 0]);
}
