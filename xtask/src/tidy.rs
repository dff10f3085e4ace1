//! Rules the compiler does not know: `cargo xtask tidy` finds every breach and names file and line.
//!
//! Rust source is read as syntax, not as text, so comments, strings and test modules are told apart from code. Rules on
//! text (unnumbered notes, paths of one machine) hold for every file of the repository.

mod advisories;
mod licences;
mod promises;
mod source;
mod unsafety;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::exec::{root, say};

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

/// Checks the whole repository and its dependencies' licences.
pub(crate) fn run() -> Result<()> {
    let sources = files()?
        .iter()
        .filter_map(|path| {
            // What is not UTF-8 is not ours to read (a corpus, a recording).
            let text = fs::read_to_string(path).ok()?;
            let name = path.strip_prefix(root()).expect("found below the root").to_string_lossy().into_owned();
            Some((name, text))
        })
        .collect::<Vec<_>>();
    let project = source::Project::of(&sources)?;
    let mut findings = source::missing_files(&sources);
    for (file, text) in &sources {
        findings.extend(text_rules(file, text));
        if Path::new(file).extension().is_some_and(|extension| extension == "rs") {
            findings.extend(source::rules(file, text, &project)?);
            findings.extend(unsafety::rules(file, text)?);
        }
    }
    findings.extend(promises::rules(&sources));
    findings.extend(licences::check()?);
    findings.extend(advisories::check()?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} breaches of the project's rules, listed above", findings.len());
    }
    say(format!("tidy: {} files and every dependency's licence keep the rules", sources.len()));
    Ok(())
}

/// Every file of the repository but the fuzz targets' corpora.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    walk(root(), &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}: cannot read", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        // In a second working tree `.git` is a file.
        if [".git", ".cache", "target", "corpus"].iter().any(|skipped| name == *skipped) {
            continue;
        }
        if kind.is_dir() {
            walk(&entry.path(), files)?;
        } else if kind.is_file() && name != ".git" {
            // Git's mark in a linked working tree is no file of the repository.
            files.push(entry.path());
        }
    }
    Ok(())
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
            if words(line).any(|word| word == note) && !numbered(line) {
                found(format!("{note} without a number (#123): note it where work is tracked, or do it"));
            }
        }
        for home in homes {
            // Part of a longer path or of an address is no place on a machine.
            let absolute = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~})".contains(c));
            if line.match_indices(home).any(|(at, _)| absolute(at)) {
                found(format!("{home}… is a path of one machine"));
            }
        }
    }
    findings
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
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
    fn a_machine_path_is_found_and_an_address_is_not() {
        assert_eq!(found(concat!("see /ho", "me/me/notes")).len(), 1);
        assert!(found(concat!("see https://example.org/ho", "me/page")).is_empty());
        assert!(found(concat!("${X}/ro", "ot/file and /proc/self/ro", "ot")).is_empty());
    }
}
