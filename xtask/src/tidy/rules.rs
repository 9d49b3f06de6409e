//! The rules and invariants that ARCHITECTURE.md lists stand in the files that it names for them.

use std::path::{Path, PathBuf};

/// Reads the table rows whose first cell is an id (`A2`, `SH-1`); their last cell names files in backquotes.
pub fn check(architecture: &str, sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (id, files) in architecture.lines().filter_map(row) {
        for file in files.split('`').skip(1).step_by(2) {
            match sources.iter().find(|(path, _)| path == Path::new(file)) {
                None => complaints.push(format!("ARCHITECTURE.md: rule {id}: there is no {file}")),
                Some((_, text)) if !mentions(text, id) => {
                    complaints.push(format!("ARCHITECTURE.md: rule {id}: {file} does not mention it"));
                }
                Some(_) => {}
            }
        }
    }
    complaints
}

fn row(line: &str) -> Option<(&str, &str)> {
    let cells: Vec<&str> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let id = cells.first()?;
    let digits = id.trim_start_matches(|c: char| c.is_ascii_uppercase()).trim_start_matches('-');
    let letters = id.chars().take_while(char::is_ascii_uppercase).count();
    let is_id = (1..=2).contains(&letters) && !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    is_id.then(|| (*id, *cells.last().unwrap_or(&"")))
}

/// The id as a word of its own: `A1` is not in `A12`. A range such as `F1 to F3` or `G1..M3` mentions its ends only.
fn mentions(text: &str, id: &str) -> bool {
    text.match_indices(id).any(|(at, _)| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        !text[..at].ends_with(word) && !text[at + id.len()..].starts_with(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_must_hold() {
        let sources = [(PathBuf::from("shard/src/log.rs"), "//! Keeps A1 and SH-12.".to_owned())];
        let check = |table: &str| check(table, &sources).len();
        assert_eq!(check("| Rule | Says | Kept in |\n|---|---|---|\n| A1 | x | `shard/src/log.rs` |"), 0);
        assert_eq!(check("| SH-12 | x | `shard/src/log.rs` |"), 0);
        assert_eq!(check("| SH-1 | x | `shard/src/log.rs` |"), 1);
        assert_eq!(check("| A2 | x | `shard/src/log.rs`, `shard/src/gone.rs` |"), 2);
        assert_eq!(check("| A2 | x | not yet |"), 0);
    }
}
