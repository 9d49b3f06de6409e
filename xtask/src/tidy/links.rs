//! Links of Markdown files to files and headings of this repository exist.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

pub fn check(documents: &[(PathBuf, String)], files: &[PathBuf]) -> Vec<String> {
    // A link may also name a folder.
    let known: BTreeSet<&Path> = files.iter().flat_map(|file| file.ancestors()).collect();
    let mut complaints = Vec::new();
    for (document, text) in documents {
        for target in links(text) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.parent().unwrap_or(Path::new(""));
            let resolved = if path.is_empty() { document.clone() } else { normalize(&folder.join(path)) };
            if !known.contains(resolved.as_path()) {
                complaints.push(format!("{}: the link to {target} leads nowhere", document.display()));
                continue;
            }
            let headings = documents.iter().find(|(name, _)| *name == resolved).map(|(_, text)| headings(text));
            if !heading.is_empty() && headings.is_some_and(|headings| !headings.contains(heading)) {
                complaints.push(format!("{}: there is no heading for {target}", document.display()));
            }
        }
    }
    complaints
}

/// The text without its fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The targets of `[text](target)` that point into the repository.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text)
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split([')', ' ']).next())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
}

/// The anchors that a Markdown viewer makes of the headings.
fn headings(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir if out.pop() => {}
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> usize {
        let documents = [
            (PathBuf::from("docs/a.md"), text.to_owned()),
            (PathBuf::from("README.md"), "# Perdure\n## What `dev` does\n".to_owned()),
        ];
        let files = [PathBuf::from("docs/a.md"), PathBuf::from("README.md"), PathBuf::from("shard/src/core.rs")];
        check(&documents, &files).len()
    }

    #[test]
    fn links_that_exist() {
        assert_eq!(complaints("[a](../README.md) [b](../shard/src/) [c](https://example.com/x) [d](a.md)"), 0);
        assert_eq!(complaints("## Here\n[a](../README.md#what-dev-does) [b](#here)\n```\n[x](nowhere.md)\n```"), 0);
    }

    #[test]
    fn links_that_do_not() {
        assert_eq!(complaints("[a](README.md) [b](../../README.md)"), 2);
        assert_eq!(complaints("[a](../README.md#what-it-does) [b](#here)"), 2);
    }
}
