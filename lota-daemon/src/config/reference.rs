//! `docs/configuration.md`, made from the types: their source says which keys there are, of what kind, and what they
//! mean; `deploy/lota.toml` what they are if nothing is said.

use std::{collections::HashMap, fmt::Write as _};

use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Type};

use super::Config;

const SOURCES: [&str; 5] = [
    include_str!("../config.rs"),
    // After the one before: `[cache]` is read as a type of its own.
    include_str!("values.rs"),
    include_str!("secrets.rs"),
    include_str!("../cache.rs"),
    include_str!("../cache/fscrypt.rs"),
];
const EXAMPLE: &str = include_str!("../../../deploy/lota.toml");

const ADDRESS: &str = "address or prefix";

const INTRODUCTION: &str = "\
<!-- Made by `cargo xtask docs` from lota-daemon/src/config.rs; a unit test compares. -->

# Configuration

One TOML file, `/etc/lota/lota.toml` unless `--config` names another. An unknown key is an error that names the nearest
right one. [`deploy/lota.toml`](../deploy/lota.toml) shows every key; `lota check` says what of a configuration works on a
node, and what will not.

Sizes are numbers of bytes, with a unit if you like: `10GiB`, `512MiB`, `4096`. Servers are `http://host:port` or
`https://host`. A section all of whose keys have defaults may be left out.

In the environment, `LOTA_LOG` is how much is logged (`error`, `warn`, `info`, `debug`, `trace`, or a list of
`module=level`), and `LOTA_LOG_FORMAT=json` makes each line a JSON object. At `debug` there is a line for each request.
";

/// A type of the configuration.
enum Kind {
    /// Its keys.
    Table { fields: Vec<Field>, default: bool },
    /// Its values, the default one first if there is one.
    Choice { values: Vec<(String, String)>, default: Option<String> },
}

struct Field {
    name: String,
    doc: String,
    ty: Type,
    /// May it be left out?
    default: bool,
}

#[derive(Default)]
struct Types(HashMap<String, Kind>);

#[test]
fn the_document_is_up_to_date() {
    crate::docs::check("configuration.md", &document());
}

fn document() -> String {
    let types = Types::read();
    let mut text = String::from(INTRODUCTION);
    for field in types.fields("Config") {
        types.section(&mut text, &field.name, field, 2);
    }
    text.push_str("\n## Files with secrets\n\nTOML, too. Nobody but root should be able to read them.\n");
    text.push_str("\n### `backend.credential_file`\n\n");
    types.table(&mut text, "", types.fields("Credential"));
    text.push_str("\n### `gateway.resign.clients_file`\n\nA `[[client]]` for each access key that clients sign with:\n\n");
    types.table(&mut text, "", types.fields("Client"));
    text.push_str("\n### `peers.secret_file`\n\nNot TOML: at least 32 bytes, the same on every node (`openssl rand -hex 32`).\n");
    text
}

impl Types {
    fn read() -> Self {
        let mut types = Self::default();
        for source in SOURCES {
            for item in syn::parse_file(source).unwrap().items {
                types.learn(item);
            }
        }
        types
    }

    fn learn(&mut self, item: Item) {
        match item {
            // Read as another type, which is learned in its place.
            Item::Struct(item) if serde(&item.attrs).contains("try_from") => {}
            Item::Struct(item) if derives(&item.attrs) => {
                let Fields::Named(fields) = item.fields else { return };
                let default = has_default(&item.attrs);
                let fields = fields.named.into_iter().map(|field| Field {
                    name: field.ident.as_ref().unwrap().to_string(),
                    doc: doc(&field.attrs),
                    default: default || has_default(&field.attrs) || inner(&field.ty, "Option").is_some(),
                    ty: field.ty,
                });
                let kind = Kind::Table { fields: fields.collect(), default };
                self.0.insert(item.ident.to_string(), kind);
            }
            Item::Enum(item) if derives(&item.attrs) => {
                let case = serde(&item.attrs);
                let (mut values, mut default) = (Vec::new(), None);
                for variant in item.variants {
                    let renamed = serde(&variant.attrs);
                    let name = match renamed.split_once("rename = \"") {
                        Some((_, name)) => name.trim_end_matches(['"', ')']).to_owned(),
                        None => in_case(&variant.ident.to_string(), &case),
                    };
                    if variant.attrs.iter().any(|attribute| attribute.path().is_ident("default")) {
                        default = Some(name.clone());
                    }
                    values.push((name, doc(&variant.attrs)));
                }
                self.0.insert(item.ident.to_string(), Kind::Choice { values, default });
            }
            _ => {}
        }
    }

    fn fields(&self, name: &str) -> &[Field] {
        match self.0.get(name) {
            Some(Kind::Table { fields, .. }) => fields,
            _ => panic!("there is no such table: {name}"),
        }
    }

    /// The table that a key holds, if it is one; or a list of such.
    fn table_of(&self, ty: &Type) -> Option<(&[Field], bool)> {
        let list = inner(ty, "Vec");
        let name = name(list.or(inner(ty, "Option")).unwrap_or(ty));
        match self.0.get(&name) {
            Some(Kind::Table { fields, .. }) => Some((fields, list.is_some())),
            _ => None,
        }
    }

    fn section(&self, text: &mut String, path: &str, field: &Field, depth: usize) {
        let Some((fields, list)) = self.table_of(&field.ty) else { panic!("{path} is no table") };
        let heading = if list { format!("[[{path}]]") } else { format!("[{path}]") };
        let optional = if field.default { " May be left out." } else { "" };
        writeln!(text, "\n{} `{heading}`\n\n{}{optional}\n", "#".repeat(depth), field.doc).unwrap();
        self.table(text, path, fields);
        for field in fields {
            if self.table_of(&field.ty).is_some() {
                self.section(text, &format!("{path}.{}", field.name), field, depth + 1);
            }
        }
    }

    fn table(&self, text: &mut String, path: &str, fields: &[Field]) {
        text.push_str("| key | value | if left out | means |\n|---|---|---|---|\n");
        for field in fields {
            let key = format!("{path}.{}", field.name);
            let values = match self.0.get(&name(inner(&field.ty, "Option").unwrap_or(&field.ty))) {
                Some(Kind::Choice { values, .. }) => {
                    let values: Vec<_> =
                        values.iter().map(|(value, doc)| format!("`{value:?}`: {}", lower(doc))).collect();
                    format!(" {}", values.join("; "))
                }
                _ => String::new(),
            };
            let default = match (field.default, path) {
                (false, _) => "(needed)".to_owned(),
                (true, "") => "none".to_owned(),
                (true, _) => self.if_left_out(&key, field),
            };
            let (kind, doc) = (self.kind(&field.ty), &field.doc);
            writeln!(text, "| `{}` | {kind} | {default} | {doc}{values} |", field.name).unwrap();
        }
    }

    /// What holds if nothing is said.
    fn if_left_out(&self, key: &str, field: &Field) -> String {
        if inner(&field.ty, "Option").is_some() {
            return "none".to_owned();
        }
        if let Some(shown) = shown_default(key) {
            return format!("`{shown}`");
        }
        let name = name(&field.ty);
        match (name.as_str(), self.0.get(&name)) {
            ("String", _) => "`\"\"`".to_owned(),
            ("Vec", _) => "`[]`".to_owned(),
            (_, Some(Kind::Choice { default: Some(default), .. })) => format!("`{default:?}`"),
            (_, Some(Kind::Table { default: true, .. })) => "its defaults".to_owned(),
            _ => panic!("deploy/lota.toml must show what {key} is by default"),
        }
    }

    fn kind(&self, ty: &Type) -> String {
        if let Some(inner) = inner(ty, "Option") {
            return self.kind(inner);
        }
        if let Some(inner) = inner(ty, "Vec") {
            return match self.kind(inner).as_str() {
                ADDRESS => "list of addresses and prefixes".into(),
                kind => format!("list of {kind}s"),
            };
        }
        let name = name(ty);
        match name.as_str() {
            "String" | "Secret" => "text".into(),
            "bool" => "`true` or `false`".into(),
            "PathBuf" => "path".into(),
            "ByteSize" => "size".into(),
            "Origin" => "server".into(),
            "Zone" => "DNS name".into(),
            "IpAddr" => "IP address".into(),
            "Ipv4Addr" => "IPv4 address".into(),
            "Ipv6Addr" => "IPv6 address".into(),
            "SocketAddr" => "address:port".into(),
            "Subject" => ADDRESS.into(),
            number if number.starts_with(['u', 'i']) => "number".into(),
            _ => match self.0.get(&name) {
                Some(Kind::Choice { .. }) => "text".into(),
                _ => "table".into(),
            },
        }
    }
}

/// What `deploy/lota.toml` shows of a key, if that is the default: if nothing changes without it.
fn shown_default(key: &str) -> Option<String> {
    let mut table: toml::Table = EXAMPLE.parse().unwrap();
    let whole = format!("{:?}", Config::parse(EXAMPLE).unwrap());
    let mut path: Vec<&str> = key.split('.').collect();
    let last = path.pop()?;
    let mut parent = &mut table;
    for step in path {
        parent = parent.get_mut(step)?.as_table_mut()?;
    }
    let value = parent.remove(last)?;
    let without = Config::parse(&table.to_string()).ok()?;
    (format!("{without:?}") == whole).then(|| value.to_string())
}

#[test]
fn the_example_has_every_key() {
    let types = Types::read();
    for section in types.fields("Config") {
        for field in types.table_of(&section.ty).unwrap().0 {
            let is_there = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{} = ", field.name))
                    || line.starts_with(&format!("[{}.{}]", section.name, field.name))
                    || line.starts_with(&format!("[[{}.{}]]", section.name, field.name))
            });
            assert!(is_there, "deploy/lota.toml does not show {}.{}", section.name, field.name);
            assert!(!field.doc.is_empty(), "{}.{} says nothing", section.name, field.name);
        }
    }
}

fn derives(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("derive") => list.tokens.to_string().contains("Deserialize"),
        _ => false,
    })
}

/// Everything that is said to serde about an item.
fn serde(attributes: &[Attribute]) -> String {
    let of_serde = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("serde") => Some(list.tokens.to_string()),
        _ => None,
    });
    of_serde.collect::<Vec<_>>().join(", ")
}

fn has_default(attributes: &[Attribute]) -> bool {
    serde(attributes)
        .split(',')
        .any(|word| word.split('=').next().is_some_and(|word| word.trim() == "default"))
}

fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(named) if named.path.is_ident("doc") => match &named.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(line) => Some(line.value().trim().replace('|', "\\|")),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// The last word of a type's path.
fn name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.segments.last().unwrap().ident.to_string(),
        _ => panic!("a type without a name"),
    }
}

/// What `Outer<…>` is of.
fn inner<'a>(ty: &'a Type, outer: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == outer)?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(inner) => Some(inner),
        _ => None,
    }
}

fn in_case(name: &str, serde: &str) -> String {
    let kebab = serde.contains("kebab-case");
    let mut cased = String::new();
    for (place, letter) in name.char_indices() {
        if kebab && place > 0 && letter.is_uppercase() {
            cased.push('-');
        }
        cased.extend(letter.to_lowercase());
    }
    cased
}

/// A sentence, to go on in another one.
fn lower(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    let mut letters = sentence.chars();
    match letters.next() {
        // Not of a word that is all capitals.
        Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => sentence.to_owned(),
    }
}
