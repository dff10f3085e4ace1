//! Checks that every test named in docs/guarantees.md exists.

use proc_macro2::TokenTree;
use syn::{
    ItemFn, Macro,
    visit::{self, Visit},
};

use super::Finding;

const PAGE: &str = "docs/guarantees.md";
const HEADING: &str = "# Guarantees";
const SUITES: &str = "tests/tests/";
/// What comes before a command that is no suite's case.
const COMMAND: &str = "cargo xtask ";

/// Finds promises without a test, and tests that are not there. `sources` are names of files and their texts.
pub(super) fn rules(sources: &[(String, String)]) -> Vec<Finding> {
    let finding = |line, what| Finding { file: PAGE.to_owned(), line, what };
    let page = sources.iter().find(|(file, _)| file == PAGE).map_or("", |(_, text)| text);
    let lines = page.lines().enumerate().skip_while(|(_, line)| *line != HEADING).skip(1);
    // A line of names and a rule come first; lines in bold are headings.
    let rows = lines.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with("| "));
    let rows: Vec<_> = rows.skip(1).filter(|(_, line)| !line.starts_with("| **")).collect();
    if rows.is_empty() {
        return vec![finding(0, format!("no table under `{HEADING}`"))];
    }
    let mut findings = Vec::new();
    for (index, row) in rows {
        let tests: Vec<_> = shown_by(row).collect();
        if tests.is_empty() {
            findings.push(finding(index + 1, "no test shows this".to_owned()));
        }
        let missing = tests.into_iter().filter(|test| !is_there(test, sources));
        findings.extend(missing.map(|test| finding(index + 1, format!("there is no test `{test}`"))));
    }
    findings
}

/// The names between backquotes in a row's last cell.
fn shown_by(row: &str) -> impl Iterator<Item = &str> {
    row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default().split('`').skip(1).step_by(2)
}

fn is_there(test: &str, sources: &[(String, String)]) -> bool {
    if let Some(command) = test.strip_prefix(COMMAND) {
        return sources.iter().any(|(file, _)| *file == format!("xtask/src/{command}.rs"));
    }
    let Some((suite, case)) = test.split_once("::") else { return false };
    let (file, folder) = (format!("{SUITES}{suite}.rs"), format!("{SUITES}{suite}/"));
    let texts = sources.iter().filter(|(name, _)| *name == file || name.starts_with(&folder));
    texts.flat_map(|(_, text)| tests(text)).any(|test| test == case)
}

/// The tests that a file has: functions for cargo's harness, and what is named to our own. None if it is no Rust, which
/// other rules find.
fn tests(text: &str) -> Vec<String> {
    let mut found = Tests::default();
    if let Ok(file) = syn::parse_file(text) {
        found.visit_file(&file);
    }
    found.0
}

#[derive(Default)]
struct Tests(Vec<String>);

impl Visit<'_> for Tests {
    fn visit_item_fn(&mut self, item: &ItemFn) {
        if item.attrs.iter().any(|attribute| attribute.path().is_ident("test")) {
            self.0.push(item.sig.ident.to_string());
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_macro(&mut self, invocation: &Macro) {
        if invocation.path.segments.last().is_some_and(|name| name.ident == "cases") {
            let names = invocation.tokens.clone().into_iter().filter_map(|token| match token {
                TokenTree::Ident(name) => Some(name.to_string()),
                _ => None,
            });
            self.0.extend(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rows: &str) -> Vec<(usize, String)> {
        let page = format!("# A\n{HEADING}\n| what | then | shown by |\n|---|---|---|\n{rows}\n## B\n| x | y | z |\n");
        let sources = [
            (PAGE.to_owned(), page),
            ("tests/tests/life.rs".to_owned(), "fn main() { run(cases![ended, begun]) }".to_owned()),
            ("tests/tests/wire/loss.rs".to_owned(), "#[test]\nfn lost() {}".to_owned()),
            ("tests/tests/word.rs".to_owned(), "// spoken\nfn written() { \"spoken\"; }".to_owned()),
            ("xtask/src/soak.rs".to_owned(), String::new()),
        ];
        rules(&sources).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn tests_that_are_there_are_taken() {
        assert_eq!(found("| **Ends** | | |\n| a | b | `life::ended`, `life::begun` |\n| a | b | `wire::lost` |"), []);
        assert_eq!(found("| a `c` | b | `cargo xtask soak` |"), []);
    }

    #[test]
    fn promises_without_a_test_are_found() {
        assert_eq!(found("| a `life::ended` | b | |"), [(5, "no test shows this".to_owned())]);
        for missing in ["life::end", "wire::ended", "life", "word::spoken", "word::written", "cargo xtask vm"] {
            assert_eq!(found(&format!("| a | b | `{missing}` |")), [(5, format!("there is no test `{missing}`"))]);
        }
        assert_eq!(found("").len(), 1);
        assert_eq!(rules(&[]).len(), 1);
    }
}
