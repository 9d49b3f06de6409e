//! What is in `deploy/`, held against the real binary: settings that are named there exist and are accepted, files that are
//! named exist, metrics that dashboards and alerts use are there after a workflow has run.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod chart;
mod compose;
mod image;
mod settings;
mod unit;
mod watching;

use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

/// A file of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// With its anchors and merge keys resolved.
fn yaml(name: &str) -> Value {
    let mut value: Value = serde_yaml_ng::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    value.apply_merge().unwrap();
    value
}

/// A sequence of texts.
fn texts(value: &Value) -> Vec<String> {
    let parts = value.as_sequence().unwrap_or_else(|| panic!("no list: {value:?}"));
    parts.iter().map(|part| part.as_str().unwrap_or_else(|| panic!("no text: {part:?}")).to_owned()).collect()
}
