//! The Dockerfile: what a linter for them would say, and that it fits this repository.

use std::collections::BTreeMap;

use crate::{settings, text};

const FILE: &str = "deploy/Dockerfile";

/// The instructions, with continued lines joined and comments left out.
fn instructions() -> Vec<(String, String)> {
    let text = text(FILE).lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
}

fn of<'a>(all: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    all.iter().filter(|(found, _)| found == name).map(|(_, rest)| rest.as_str()).collect()
}

/// What the image sets.
pub fn environment() -> BTreeMap<String, String> {
    let all = instructions();
    let pairs = of(&all, "ENV").into_iter().flat_map(str::split_whitespace);
    pairs.map(|pair| pair.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn json(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not in the form of a list: {text}: {error}"))
}

#[test]
fn it_runs_the_server_as_nobody_in_particular() {
    let all = instructions();
    let (user, group) = of(&all, "USER")[0].split_once(':').expect("a user and a group");
    for id in [user, group] {
        assert!(id.parse::<u32>().expect("by number, so that Kubernetes can tell") > 0);
    }
    let program = json(of(&all, "ENTRYPOINT")[0]);
    assert_eq!(of(&all, "COPY").last().unwrap().split_whitespace().last(), Some(program[0].as_str()));
    assert_eq!(json(of(&all, "CMD")[0]), ["server"]);
    let (_, health) = of(&all, "HEALTHCHECK")[0].split_once("CMD ").unwrap();
    let health = json(health);
    assert_eq!(health[0], program[0]);
    settings::parses(&health[1..]);
    settings::accepted(&[], &environment());
}

#[test]
fn stages_are_pinned_and_the_compiler_is_new_enough() {
    let all = instructions();
    let arguments: BTreeMap<&str, &str> = of(&all, "ARG").into_iter().filter_map(|arg| arg.split_once('=')).collect();
    for from in of(&all, "FROM") {
        let image = from.split_whitespace().find(|word| !word.starts_with("--")).unwrap();
        assert!(image.contains(':') && !image.contains(":latest"), "{image}");
        for name in image.split("${").skip(1).filter_map(|rest| rest.split('}').next()) {
            assert!(arguments.contains_key(name), "{name} is not declared before the stage");
        }
    }
    let version = |text: &str| text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let needed = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(version(arguments["RUST_VERSION"]) >= version(needed), "the workspace needs {needed}");
    // Every installation is without what is not needed, and leaves no lists behind.
    for run in of(&all, "RUN").into_iter().filter(|run| run.contains("apt-get install")) {
        assert!(run.contains("--no-install-recommends") && run.contains("rm -rf /var/lib/apt/lists"), "{run}");
    }
}

/// Every crate is in what the build sees, and what is large stays out.
#[test]
fn the_context_holds_all_crates() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let ignore = text(".dockerignore");
    let left_out: Vec<&str> = ignore.lines().filter(|line| !line.starts_with('#')).collect();
    let members = manifest["workspace"]["members"].as_array().unwrap().iter().map(|member| member.as_str().unwrap());
    for name in members.chain(["Cargo.toml", "Cargo.lock", ".cargo", "rust-toolchain.toml"]) {
        assert!(!left_out.contains(&name), "{name} is left out by .dockerignore");
    }
    for name in [".git", "target", "perdure-data"] {
        assert!(left_out.contains(&name), "{name} is not left out by .dockerignore");
    }
}
