//! Which crate may depend on which: arrows point down only.

use std::path::PathBuf;

/// Folder, and the folders of the crates that it may use. Tests follow the same rule.
const ALLOWED: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("types", &[]),
    ("workflow", &["types", "proto"]),
    ("schedule", &["workflow", "types", "proto"]),
    ("batch", &["workflow", "types", "proto"]),
    ("deployment", &["workflow", "types", "proto"]),
    ("activity", &["workflow", "types", "proto"]),
    ("operation", &["workflow", "types", "proto"]),
    ("persistence", &["types"]),
    ("cluster", &["types", "proto"]),
    ("visibility", &["types", "proto"]),
    (
        "shard",
        &[
            "workflow",
            "schedule",
            "batch",
            "deployment",
            "activity",
            "operation",
            "persistence",
            "visibility",
            "proto",
            "types",
        ],
    ),
    ("matching", &["proto", "types"]),
    ("nexus", &["cluster", "proto", "types"]),
    ("frontend", &["cluster", "nexus", "proto", "types", "visibility"]),
    ("console", &["frontend", "cluster", "visibility", "proto", "types"]),
    (
        "server",
        &[
            "cluster",
            "console",
            "frontend",
            "matching",
            "nexus",
            "persistence",
            "proto",
            "schedule",
            "shard",
            "types",
            "visibility",
            "workflow",
        ],
    ),
    ("sim", &["server", "cluster", "frontend", "matching", "persistence", "proto", "shard", "types", "workflow"]),
    ("loadtests", &["types", "persistence", "proto"]),
    ("xtask", &[]),
];

/// `manifests`: every TOML file of the tree; those named `<folder>/Cargo.toml` are checked.
pub fn check(manifests: &[(PathBuf, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in manifests {
        let Some(folder) = path.to_str().and_then(|path| path.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == folder) else {
            complaints.push(format!("{}: the crate has no row in xtask/src/tidy/edges.rs", path.display()));
            continue;
        };
        complaints.extend(
            own_dependencies(text)
                .filter(|used| !allowed.contains(used))
                .map(|used| format!("{}: `{folder}` may not depend on `{used}`", path.display())),
        );
    }
    complaints
}

/// The folders of the workspace's crates in the dependency tables of a manifest.
fn own_dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut in_table = false;
    manifest.lines().map(str::trim).filter_map(move |line| {
        if let Some(header) = line.strip_prefix('[') {
            in_table = header.contains("dependencies");
            // A dependency with a table of its own: `[dependencies.perdure-types]`.
            return header.trim_end_matches(']').split_once("dependencies.").and_then(|(_, name)| folder_of(name));
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if in_table { folder_of(name) } else { None }
    })
}

/// `perdure-types` lies in `types`, the server's package is called `perdure`.
fn folder_of(package: &str) -> Option<&str> {
    if package == "perdure" { Some("server") } else { package.strip_prefix("perdure-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(folder: &str, manifest: &str) -> Vec<String> {
        check(&[(PathBuf::from(folder).join("Cargo.toml"), manifest.to_owned())])
    }

    #[test]
    fn arrows_down_are_fine() {
        let manifest = "[package]\nname = \"perdure-shard\"\n[dependencies]\nbytes.workspace = true\nperdure-types.workspace = true\n";
        assert!(complaints("shard", manifest).is_empty());
    }

    #[test]
    fn arrows_up_are_not() {
        let up = ["shard/Cargo.toml: `shard` may not depend on `frontend`"];
        assert_eq!(complaints("shard", "[dependencies]\nperdure-frontend.workspace = true"), up);
        assert_eq!(complaints("shard", "[dev-dependencies]\nperdure-frontend = { path = \"../frontend\" }"), up);
        assert_eq!(complaints("shard", "[dependencies.perdure-frontend]\nworkspace = true"), up);
        assert_eq!(complaints("types", "[dependencies]\nperdure = \"1\"").len(), 1);
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        assert_eq!(complaints("extra", "[dependencies]").len(), 1);
    }
}
