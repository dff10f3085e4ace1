//! `docs/guarantees.md` lists what happens in every failure, and which test shows it: each of these tests must exist.

use proc_macro2::TokenTree;
use syn::{
    ItemFn, Macro,
    visit::{self, Visit},
};

use super::Finding;

const TABLE: &str = "docs/guarantees.md";
const SUITES: &str = "tests/tests/";
/// Begins the name of a task that shows a guarantee in place of a test.
const TASK: &str = "cargo xtask ";

/// Finds guarantees without a test, and tests that do not exist. `sources` are names of files and their texts.
pub(super) fn rules(sources: &[(String, String)]) -> Vec<Finding> {
    let finding = |line, what| Finding { file: TABLE.to_owned(), line, what };
    let Some((_, text)) = sources.iter().find(|(file, _)| file == TABLE) else { return Vec::new() };
    // The first row has the names of the columns; rows in bold are headings.
    let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with("| "));
    let rows: Vec<_> = rows.skip(1).filter(|(_, line)| !line.starts_with("| **")).collect();
    if rows.is_empty() {
        return vec![finding(0, "no table of guarantees".to_owned())];
    }
    let mut findings = Vec::new();
    for (index, row) in rows {
        let tests: Vec<_> = shown_by(row).collect();
        if tests.is_empty() {
            findings.push(finding(index + 1, "no test shows this".to_owned()));
        }
        let missing = tests.into_iter().filter(|test| !exists(test, sources));
        findings.extend(missing.map(|test| finding(index + 1, format!("there is no test `{test}`"))));
    }
    findings
}

/// Returns the names between backquotes in a row's last cell.
fn shown_by(row: &str) -> impl Iterator<Item = &str> {
    row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default().split('`').skip(1).step_by(2)
}

fn exists(test: &str, sources: &[(String, String)]) -> bool {
    if let Some(task) = test.strip_prefix(TASK) {
        return sources.iter().any(|(file, _)| {
            *file == format!("xtask/src/{task}.rs") || *file == format!("tests/bookstore/src/bin/{task}/main.rs")
        });
    }
    let Some((suite, case)) = test.split_once("::") else { return false };
    let (file, directory) = (format!("{SUITES}{suite}.rs"), format!("{SUITES}{suite}/"));
    let texts = sources.iter().filter(|(name, _)| *name == file || name.starts_with(&directory));
    texts.flat_map(|(_, text)| tests(text)).any(|test| test == case)
}

/// Returns the tests of a file: functions for Cargo's harness, and the names in `cases!`. None if it is not Rust, which
/// another rule finds.
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
        let table = format!("# A\n\n| failure | then | shown by |\n|---|---|---|\n{rows}\n");
        let sources = [
            (TABLE.to_owned(), table),
            ("tests/tests/lifecycle.rs".to_owned(), "fn main() { run(cases![ended, begun]) }".to_owned()),
            ("tests/tests/wire/loss.rs".to_owned(), "#[test]\nfn lost() {}".to_owned()),
            ("tests/tests/word.rs".to_owned(), "// spoken\nfn written() { \"spoken\"; }".to_owned()),
            ("tests/bookstore/src/bin/soak/main.rs".to_owned(), String::new()),
        ];
        rules(&sources).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn tests_that_exist_are_accepted() {
        assert_eq!(
            found("| **Ends** | | |\n| a | b | `lifecycle::ended`, `lifecycle::begun` |\n| a | b | `wire::lost` |"),
            []
        );
        assert_eq!(found("| a `c` | b | `cargo xtask soak` |"), []);
    }

    #[test]
    fn guarantees_without_a_test_are_found() {
        assert_eq!(found("| a `lifecycle::ended` | b | |"), [(5, "no test shows this".to_owned())]);
        for missing in ["lifecycle::end", "wire::ended", "lifecycle", "word::spoken", "word::written", "cargo xtask vm"]
        {
            assert_eq!(found(&format!("| a | b | `{missing}` |")), [(5, format!("there is no test `{missing}`"))]);
        }
        assert_eq!(found("").len(), 1);
    }
}
