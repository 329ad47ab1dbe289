//! The document that a browser made of a page.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use html5ever::{parse_document, tendril::TendrilSink as _};
use markup5ever_rcdom::{Handle, NodeData, RcDom};

/// An element.
pub(crate) struct Element {
    /// Name of the tag.
    pub(crate) tag: String,
    pub(crate) attributes: HashMap<String, String>,
    pub(crate) children: Vec<Element>,
    /// The text of the element and of all elements in it.
    pub(crate) text: String,
}

impl Element {
    /// Parses a document.
    pub(crate) fn parse(document: &str) -> Self {
        let dom = parse_document(RcDom::default(), Default::default()).one(document);
        Self::of(&dom.document, "")
    }

    fn of(node: &Handle, tag: &str) -> Self {
        let mut element = Self {
            tag: tag.to_owned(),
            attributes: HashMap::new(),
            children: Vec::new(),
            text: String::new(),
        };
        if let NodeData::Element { attrs, .. } = &node.data {
            for attribute in attrs.borrow().iter() {
                element.attributes.insert(attribute.name.local.to_string(), attribute.value.to_string());
            }
        }
        for child in node.children.borrow().iter() {
            match &child.data {
                NodeData::Text { contents } => element.text.push_str(&contents.borrow()),
                NodeData::Element { name, .. } => {
                    let child = Self::of(child, &name.local);
                    element.text.push_str(&child.text);
                    element.children.push(child);
                }
                _ => {}
            }
        }
        element
    }

    /// Returns this element and all elements in it.
    fn all(&self) -> Vec<&Self> {
        [self].into_iter().chain(self.children.iter().flat_map(Self::all)).collect()
    }

    /// Returns the elements with a tag.
    pub(crate) fn tags(&self, tag: &str) -> Vec<&Self> {
        self.all().into_iter().filter(|element| element.tag == tag).collect()
    }

    /// Returns the elements of a class.
    pub(crate) fn of_class(&self, class: &str) -> Vec<&Self> {
        self.all().into_iter().filter(|element| element.classes().any(|one| one == class)).collect()
    }

    /// Returns the element with an id.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn id(&self, id: &str) -> Result<&Self> {
        let has = |element: &&Self| element.attributes.get("id").is_some_and(|found| found == id);
        self.all().into_iter().find(has).with_context(|| format!("no element #{id} in\n{}", self.text))
    }

    /// Returns the texts of the cells of each row of a table's body.
    pub(crate) fn rows(&self, body: &str) -> Result<Vec<Vec<&str>>> {
        let rows = self.id(body)?.tags("tr").into_iter();
        Ok(rows.map(|row| row.children.iter().map(|cell| &*cell.text).collect()).collect())
    }

    fn classes(&self) -> impl Iterator<Item = &str> {
        self.attributes.get("class").map_or("", String::as_str).split_whitespace()
    }
}
