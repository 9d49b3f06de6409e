//! The page of all RPCs, and the README's count of them, are those that the server answers by.

use std::fmt::Write;

use anyhow::{Context, Result};

/// The table of all RPCs. A test there holds it against the descriptors of the API.
pub const SOURCE: &str = "frontend/src/service.rs";
pub const PAGE: &str = "docs/api.md";
const BEGIN: &str = "<!-- rpcs: written by `cargo xtask fix` -->\n";
const END: &str = "<!-- end of rpcs -->";

/// Why an RPC answers `UNIMPLEMENTED`, by the beginning or the end of its name; the first that fits counts.
const REASONS: &[(&str, &str)] = &[
    ("AddOrUpdateRemoteCluster", "refused: replication between clusters is not built; the store replicates"),
    ("PollWorkflowExecutionTimeSkipping", "refused: for tests, which skip time; Temporal's server has it switched off"),
    ("FetchWorkerConfig", "Temporal's newest server answers `UNIMPLEMENTED`, too"),
    ("UpdateWorkerConfig", "Temporal's newest server answers `UNIMPLEMENTED`, too"),
];
const NO_REASON: &str = "not built yet";

pub fn check(readme: &str, page: &str, source: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, text, fresh) in
        [("README.md", readme, rewrite_readme(readme, source)), (PAGE, page, rewrite_page(page, source))]
    {
        match fresh {
            Ok(expected) if expected == text => {}
            Ok(_) => complaints.push(format!("{name}: the RPCs differ from {SOURCE}: run `cargo xtask fix`")),
            Err(error) => complaints.push(format!("{name}: {error:#}")),
        }
    }
    complaints
}

/// README.md with the counts brought up to date.
pub fn rewrite_readme(readme: &str, source: &str) -> Result<String> {
    replace(readme, &counts(&services(source)))
}

/// The page of all RPCs, brought up to date.
pub fn rewrite_page(page: &str, source: &str) -> Result<String> {
    replace(page, &tables(&services(source)))
}

fn replace(text: &str, generated: &str) -> Result<String> {
    let (head, rest) = text.split_once(BEGIN).context("the mark before the RPCs is gone")?;
    let (_, tail) = rest.split_once(END).context("the mark after the RPCs is gone")?;
    Ok(format!("{head}{BEGIN}{generated}{END}{tail}"))
}

struct Service<'a> {
    name: &'a str,
    /// Sorted.
    done: Vec<&'a str>,
    open: Vec<&'a str>,
}

fn services(source: &str) -> Vec<Service<'_>> {
    let service = |text| {
        let (name, body) = str::trim_start(text).split_once(',')?;
        let (done, open) = body.split_once("\n    unimplemented {").unwrap_or((body, ""));
        Some(Service { name, done: rpcs(done), open: rpcs(open.split("\n    }").next().unwrap_or_default()) })
    };
    source.split("\nservice! {").skip(1).filter_map(service).collect()
}

/// Lines such as `start::start_workflow_execution(StartWorkflowExecutionRequest) -> …;`.
fn rpcs(block: &str) -> Vec<&str> {
    let mut names: Vec<&str> = block
        .lines()
        .filter_map(|line| line.split_once('(')?.1.split_once("Request) ->"))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names
}

fn counts(services: &[Service<'_>]) -> String {
    let count = |service: &Service<'_>| {
        format!("{} of the {} RPCs of {}", service.done.len(), service.done.len() + service.open.len(), service.name)
    };
    let counts: Vec<String> = services.iter().map(count).collect();
    format!("Served are {}; [docs/api.md](docs/api.md) lists them.\n", counts.join(" and "))
}

fn tables(services: &[Service<'_>]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for Service { name, done, open } in services {
        let _ = write!(text, "\n## {name}\n\n{} of {} are served.\n\n", done.len(), done.len() + open.len());
        text.push_str("| RPC | State | |\n| --- | --- | --- |\n");
        let mut rows: Vec<(&str, bool)> = done.iter().map(|rpc| (*rpc, true)).collect();
        rows.extend(open.iter().map(|rpc| (*rpc, false)));
        rows.sort_unstable();
        for (rpc, is_served) in rows {
            let _ = match is_served {
                true => writeln!(text, "| {rpc} | served | |"),
                false => writeln!(text, "| {rpc} | `UNIMPLEMENTED` | {} |", reason(rpc)),
            };
        }
    }
    text.push('\n');
    text
}

fn reason(rpc: &str) -> &'static str {
    let fits = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => rpc.contains(pattern.trim_matches('*')),
        (Some(end), None) => rpc.ends_with(end),
        (None, Some(start)) => rpc.starts_with(start),
        (None, None) => rpc == pattern,
    };
    REASONS.iter().find(|(pattern, _)| fits(pattern)).map_or(NO_REASON, |(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "macro_rules! service { }\n\nservice! {\n    WorkflowService, DONE, OPEN\n    implemented {\n        \
        b::b(BRequest) -> BResponse;\n        a::a(ARequest) -> AResponse;\n    }\n    unimplemented {\n        \
        c(UpdateWorkerConfigRequest) -> CResponse;\n    }\n}\n";

    #[test]
    fn the_texts_follow_the_source() {
        let stale = format!("# Top\n{BEGIN}old{END}\nbottom\n");
        assert_eq!(check(&stale, &stale, SERVICE).len(), 2);
        let readme = rewrite_readme(&stale, SERVICE).unwrap();
        assert!(readme.contains("Served are 2 of the 3 RPCs of WorkflowService;"), "{readme}");
        let page = rewrite_page(&stale, SERVICE).unwrap();
        assert!(
            page.contains("| A | served | |\n| B | served | |\n| UpdateWorkerConfig | `UNIMPLEMENTED` | Temporal"),
            "{page}"
        );
        assert!(page.starts_with("# Top\n") && page.ends_with("\nbottom\n"));
        assert!(check(&readme, &page, SERVICE).is_empty());
        assert_eq!(check("no marks", &page, SERVICE).len(), 1);
    }
}
