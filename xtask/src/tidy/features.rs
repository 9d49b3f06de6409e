//! README.md's list of RPCs is the one that the server answers by.

use std::fmt::Write;

use anyhow::{Context, Result};

/// The table of all RPCs.
pub const SOURCE: &str = "frontend/src/service.rs";
const BEGIN: &str = "<!-- rpcs: written by `cargo xtask fix` -->\n";
const END: &str = "<!-- end of rpcs -->";

pub fn check(readme: &str, source: &str) -> Vec<String> {
    match rewrite(readme, source) {
        Ok(expected) if expected == readme => Vec::new(),
        Ok(_) => vec![format!("README.md: the list of RPCs differs from {SOURCE}: run `cargo xtask fix`")],
        Err(error) => vec![format!("README.md: {error:#}")],
    }
}

/// README.md with the list brought up to date.
pub fn rewrite(readme: &str, source: &str) -> Result<String> {
    let (head, rest) = readme.split_once(BEGIN).context("the mark before the list of RPCs is gone")?;
    let (_, tail) = rest.split_once(END).context("the mark after the list of RPCs is gone")?;
    Ok(format!("{head}{BEGIN}{}{END}{tail}", list(source)))
}

fn list(source: &str) -> String {
    let mut text = String::new();
    for service in source.split("\nservice! {").skip(1) {
        let Some((name, body)) = service.trim_start().split_once(',') else {
            continue;
        };
        let (done, open) = body.split_once("\n    unimplemented {").unwrap_or((body, ""));
        let (done, open) = (rpcs(done), rpcs(open.split("\n    }").next().unwrap_or_default()));
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n**{name}**, served ({}): {}.\n", done.len(), done.join(", "));
        let _ = writeln!(text, "**{name}**, answers `UNIMPLEMENTED` ({}): {}.", open.len(), open.join(", "));
    }
    text.push('\n');
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "macro_rules! service { }\n\nservice! {\n    WorkflowService, DONE, OPEN\n    implemented {\n        \
        b::b(BRequest) -> BResponse;\n        a::a(ARequest) -> AResponse;\n    }\n    unimplemented {\n        \
        c(CRequest) -> CResponse;\n    }\n}\n";

    #[test]
    fn the_list_follows_the_source() {
        let stale = format!("# Top\n{BEGIN}old{END}\nbottom\n");
        assert_eq!(check(&stale, SERVICE).len(), 1);
        let fresh = rewrite(&stale, SERVICE).unwrap();
        assert!(fresh.contains("**WorkflowService**, served (2): A, B.\n"), "{fresh}");
        assert!(fresh.contains("**WorkflowService**, answers `UNIMPLEMENTED` (1): C.\n"), "{fresh}");
        assert!(fresh.starts_with("# Top\n") && fresh.ends_with("\nbottom\n"));
        assert!(check(&fresh, SERVICE).is_empty());
        assert_eq!(check("no marks", SERVICE).len(), 1);
    }
}
