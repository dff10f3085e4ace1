//! Checks that docs/operating.md lists every option of `run`, and that links between documents lead somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use observer::cli::args::Cli;

#[test]
fn operating_lists_every_option_of_run() {
    let page = fs::read_to_string(root().join("docs/operating.md")).expect("docs/operating.md is readable");
    let cli = Cli::command();
    let run = cli.find_subcommand("run").expect("there is `run`");
    let options = run.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("`--{long}"));
    let missing: Vec<_> = options.filter(|option| !page.contains(option)).collect();
    assert!(missing.is_empty(), "not in docs/operating.md: {missing:?}");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut dangling = Vec::new();
    let folders = [root(), root().join("docs")];
    for file in folders.iter().flat_map(|folder| fs::read_dir(folder).expect("it is readable").flatten()) {
        let file = file.path();
        let Some(text) = markdown(&file) else { continue };
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.with_file_name(path) };
            let found = link.starts_with("https://")
                || target.exists()
                    && (heading.is_empty() || markdown(&target).is_some_and(|text| has_heading(&text, heading)));
            if !found {
                dangling.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(dangling.is_empty(), "{dangling:#?}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn markdown(file: &Path) -> Option<String> {
    (file.extension()? == "md").then(|| fs::read_to_string(file).ok())?
}

/// Whether a heading has this anchor: lower case, spaces as dashes, other punctuation omitted.
fn has_heading(text: &str, anchor: &str) -> bool {
    let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches(['#', ' ']));
    headings.map(|heading| heading.to_lowercase().replace(|c| !kept(c), "").replace(' ', "-")).any(|own| own == anchor)
}
