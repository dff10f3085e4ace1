//! Rules that the compiler does not know: `cargo xtask tidy` names file and line of every breach.

mod guarantees;
mod names;

use std::{fmt, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use walkdir::{DirEntry, WalkDir};

use crate::{
    deny,
    exec::{root, say},
};

const KERNEL_PROGRAMS: &str = "observer-ebpf/src/";
/// Lines from a reason to its unsafe code: the rest of the comment, and the beginning of the statement.
const REASON_LINES: usize = 12;

/// One breach of one rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Relative to the root of the repository.
    file: String,
    /// Counted from 1; 0 if it is about the file as a whole.
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks the whole repository and its dependencies.
pub(crate) fn run() -> Result<()> {
    let sources = files()?
        .iter()
        .filter_map(|path| {
            // A file that is not UTF-8 is a recording.
            let text = fs::read_to_string(path).ok()?;
            let name = path.strip_prefix(root()).expect("found below the root").to_string_lossy().into_owned();
            Some((name, text))
        })
        .collect::<Vec<_>>();
    let mut findings = names::rules(&sources);
    findings.extend(guarantees::rules(&sources));
    for (file, text) in &sources {
        findings.extend(text_rules(file, text));
        if file.ends_with(".rs") {
            findings.extend(rust_rules(file, text));
        }
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} breaches of the project's rules, listed above", findings.len());
    }
    deny::check()?;
    say(format!("tidy: {} files and every dependency keep the rules", sources.len()));
    Ok(())
}

/// Returns every file of the repository but the fuzz targets' corpora.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    // In a linked working tree `.git` is a file.
    let is_ours =
        |entry: &DirEntry| ![".git", ".cache", "target", "corpus"].iter().any(|name| entry.file_name() == *name);
    let entries = WalkDir::new(root()).sort_by_file_name().into_iter().filter_entry(is_ours);
    let files = entries.filter(|entry| entry.as_ref().map_or(true, |entry| entry.file_type().is_file()));
    files.map(|file| file.map(DirEntry::into_path)).collect::<Result<_, _>>().context("the repository cannot be read")
}

/// Rules that hold for any text.
fn text_rules(file: &str, text: &str) -> Vec<Finding> {
    // Spelled in halves, so that this file keeps its own rules.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let homes = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut found = |what: String| findings.push(Finding { file: file.to_owned(), line: number + 1, what });
        for note in notes {
            if line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == note) && !numbered(line) {
                found(format!("{note} without a number (#123): note it where work is tracked, or do it"));
            }
        }
        for home in homes {
            // Part of a longer path or of an address is not a path of a machine.
            let absolute = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~})".contains(c));
            if line.match_indices(home).any(|(at, _)| absolute(at)) {
                found(format!("{home}… is a path of one machine"));
            }
        }
    }
    findings
}

/// Rules that hold for Rust.
fn rust_rules(file: &str, text: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let mut findings = Vec::new();
    let mut found = |line, what: &str| findings.push(Finding { file: file.to_owned(), line, what: what.to_owned() });
    if !text.starts_with("//!") {
        found(1, "does not begin with a module comment (//!) that describes its purpose");
    }
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with("#[ignore") {
            found(number + 1, "a test that is ignored proves nothing: run it or remove it");
        }
        // Clippy checks the host's code, and does not see the kernel programs.
        let is_unsafe = !line.starts_with("//") && ["unsafe {", "unsafe impl"].iter().any(|code| line.contains(code));
        let above = lines[..=number].iter().rev().take(REASON_LINES).take_while(|line| !line.is_empty());
        if file.starts_with(KERNEL_PROGRAMS) && is_unsafe && !above.into_iter().any(|line| line.contains("// SAFETY: "))
        {
            found(number + 1, "unsafe code without a comment `// SAFETY: …` that says why it is sound");
        }
    }
    findings
}

fn numbered(line: &str) -> bool {
    line.match_indices('#').any(|(at, _)| line[at + 1..].starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Vec<String> {
        text_rules("x.md", line).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_note_needs_a_number() {
        let note = concat!("// TO", "DO later");
        assert!(found(note)[0].starts_with(concat!("x.md:1: TO", "DO without a number")), "{:?}", found(note));
        assert!(found(concat!("// TO", "DO(#12) later")).is_empty());
        assert!(found("// a TODOS list is no note").is_empty());
    }

    #[test]
    fn rust_has_a_module_comment_no_ignored_test_and_reasons_for_unsafe_code() {
        let found = |code: &str| -> Vec<usize> {
            let findings = rust_rules("observer-ebpf/src/maps.rs", &format!("//! Maps.\n{code}"));
            findings.into_iter().map(|finding| finding.line).collect()
        };
        assert_eq!(rust_rules("a.rs", "fn f() {}").len(), 1);
        assert_eq!(found(concat!("#[test]\n#[ign", "ore = \"slow\"]\nfn f() {}")), [3]);
        assert_eq!(found("fn f() {\n    unsafe { g() }\n}\n"), [3]);
        assert_eq!(found("// SAFETY: of another item.\n\nunsafe impl Send for X {}\n"), [4]);
        assert!(found("// SAFETY: integers.\n// All zero is valid.\nunsafe impl Pod for X {}\n").is_empty());
    }

    #[test]
    fn a_machine_path_is_found_and_an_address_is_not() {
        assert_eq!(found(concat!("see /ho", "me/me/notes")).len(), 1);
        assert!(found(concat!("see https://example.org/ho", "me/page")).is_empty());
        assert!(found(concat!("${X}/ro", "ot/file and /proc/self/ro", "ot")).is_empty());
    }
}
