//! Checks that docs/troubleshooting.md lists every reason label and every error message.

use std::{fs, path::Path};

use observer::model::catalogue;
use observer_common::health::{Counter, Group};

const PAGE: &str = include_str!("../../docs/troubleshooting.md");

/// A family of one of these labels says why something is missing.
const REASONS: [&str; 3] = ["reason", "kind", "outcome"];

#[test]
fn every_reason_that_the_programs_count() {
    let is_documented =
        |counter: &&Counter| matches!(counter.group(), Group::Requests | Group::Desyncs | Group::Uncounted);
    let counters = Counter::ALL.iter().filter(is_documented).filter(|counter| **counter != Counter::RequestOk);
    let missing: Vec<_> = counters.filter(|counter| !PAGE.contains(&format!("\n| `{}` | ", counter.label()))).collect();
    assert!(missing.is_empty(), "no line for {missing:?}");
}

#[test]
fn every_family_that_says_why_something_is_missing() {
    let families = catalogue::FAMILIES.iter().filter(|family| {
        family.prometheus_name.starts_with("mesh_observer_")
            && family.labels.iter().any(|label| REASONS.contains(label))
    });
    // That one says what connections were.
    let names = families.map(|family| family.prometheus_name).filter(|name| *name != "mesh_observer_connections_total");
    let names: Vec<_> = names.collect();
    assert!(names.len() > 5, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !PAGE.contains(*name)).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
}

/// Of each error's text the first five words of its longest part without a value in it.
#[test]
fn every_error() {
    let mut errors = Vec::new();
    for folder in ["src", "model/src"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut |text| {
            errors.extend(text.split("#[error(").skip(1).filter_map(literal));
        });
    }
    assert!(errors.len() > 40, "{} errors", errors.len());
    let page = PAGE.split_whitespace().collect::<Vec<_>>().join(" ");
    let missing: Vec<_> = errors.iter().filter(|error| !page.contains(&beginning(error))).collect();
    assert!(missing.is_empty(), "not on the page: {missing:#?}");
}

fn sources(folder: &Path, each: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(folder).expect("the sources are there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&fs::read_to_string(&path).expect("it is UTF-8"));
        }
    }
}

/// The string that an attribute's text begins with, its line breaks joined as the compiler joins them.
fn literal(attribute: &str) -> Option<String> {
    let text = attribute.trim_start().strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    loop {
        match characters.next()? {
            '"' => return Some(value),
            '\\' => match characters.next()? {
                '\n' => while characters.next_if(|c| c.is_whitespace()).is_some() {},
                escaped => value.push(escaped),
            },
            plain => value.push(plain),
        }
    }
}

fn beginning(error: &str) -> String {
    let parts = error.split('{').map(|part| part.split_once('}').map_or(part, |(_, text)| text));
    let longest = parts.max_by_key(|part| part.len()).unwrap_or_default();
    longest.split_whitespace().take(5).collect::<Vec<_>>().join(" ")
}
