//! A file that is too long is two files.

use std::path::PathBuf;

const MAX_LINES: usize = 800;

pub const EXTENSIONS: &[&str] = &["rs", "proto", "py", "go", "md", "sh"];

pub fn check(files: &[(PathBuf, String)]) -> Vec<String> {
    files
        .iter()
        .map(|(file, text)| (file, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines, more than {MAX_LINES}", file.display()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_fine() {
        let text = |lines: usize| (PathBuf::from("a.rs"), "x\n".repeat(lines));
        assert!(check(&[text(800)]).is_empty());
        assert_eq!(check(&[text(801)]), ["a.rs: 801 lines, more than 800"]);
    }
}
