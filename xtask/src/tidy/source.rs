//! Rules on Rust source: purity, direction of the data flow, where names may stand, module documentation.

use anyhow::{Context as _, Result};
use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::{
    Attribute, ExprMethodCall, File, ItemFn, ItemImpl, ItemMod, ItemUse, Lit, LitStr, Macro, Meta, Path, UseTree,
    spanned::Spanned as _,
    visit::{self, Visit},
};

use super::{Finding, unsafety::UNSAFE};

/// Model, parsers, decisions and encoders: a file, or a folder if it ends in a slash. These do no I/O and read no clock.
const PURE: [&str; 8] = [
    "observer/src/persist/btf.rs",
    "observer/src/persist/abi.rs",
    "observer/src/persist/field_offsets.rs",
    "observer/src/persist/state_map/paged_text.rs",
    "observer/src/persist/state.rs",
    "observer/model/",
    "observer-ebpf/common/src/",
    "observer-ebpf/proto/src/",
];
/// Paths that pure code may not use: these and everything below them.
const IMPURE: [&str; 19] = [
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "tokio",
    "aya",
    "reqwest",
    "hyper",
    "libc",
    "procfs",
    "tracing",
];
/// Only a marker for memory layouts.
const HARMLESS: &str = "aya::Pod";
const CATALOGUE: &str = "observer/model/src/catalogue.rs";
const KERNEL_NAMES: &str = "observer-ebpf/common/src/names.rs";
/// Where names are watched: the product. What looks at it from outside names what it expects to see.
const NAMED: [&str; 3] = ["observer/src/", "observer/model/", "observer-ebpf/"];
const METRIC_PREFIXES: [&str; 3] = ["istio_", "istio.", "mesh_observer_"];
/// Istio's site and the executable of citadel begin so and are no metrics.
const NO_METRICS: [&str; 2] = ["istio.io", "istio_ca"];

/// What must be known of all files before one is judged.
#[derive(Default)]
pub(super) struct Project {
    /// Names of maps and programs.
    kernel_names: Vec<String>,
    /// Files that only tests compile.
    test_files: Vec<String>,
}

impl Project {
    /// Reads every source file once.
    pub(super) fn of(sources: &[(String, String)]) -> Result<Self> {
        let mut project = Self::default();
        for (file, text) in sources.iter().filter(|(file, _)| file.ends_with(".rs")) {
            let mut scan = Scan::default();
            scan.visit_file(&parse(file, text)?);
            let modules = scan.test_modules.iter().map(|module| format!("{}{module}.rs", folder_of_modules(file)));
            project.test_files.extend(modules);
            if file == KERNEL_NAMES {
                project.kernel_names = scan.literals.into_iter().map(|(_, text)| text).collect();
            }
        }
        Ok(project)
    }
}

/// Where a file's modules lie.
fn folder_of_modules(file: &str) -> String {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (folder, name));
    match name.trim_end_matches(".rs") {
        "lib" | "main" | "mod" => format!("{folder}/"),
        module => format!("{folder}/{module}/"),
    }
}

/// Files a rule names that are not there: the rule would hold nothing.
pub(super) fn missing_files(sources: &[(String, String)]) -> Vec<Finding> {
    PURE.iter()
        .chain(&UNSAFE)
        .chain(&[CATALOGUE, KERNEL_NAMES])
        .filter(|wanted| !sources.iter().any(|(file, _)| file.starts_with(**wanted)))
        .map(|wanted| Finding {
            file: (*wanted).to_owned(),
            line: 0,
            what: "a rule of tidy names it: missing".to_owned(),
        })
        .collect()
}

/// Every rule on one file.
pub(super) fn rules(file: &str, text: &str, project: &Project) -> Result<Vec<Finding>> {
    let mut scan = Scan { in_tests: project.test_files.iter().any(|test| test == file), ..Scan::default() };
    scan.visit_file(&parse(file, text)?);
    let mut findings = Vec::new();
    let mut found = |line: usize, what: String| findings.push(Finding { file: file.to_owned(), line, what });

    if !text.starts_with("//!") {
        found(1, "does not begin with a module comment (//!) that says what it is for".to_owned());
    }
    for line in &scan.ignored_tests {
        found(*line, "a test that is ignored proves nothing: run it or remove it".to_owned());
    }
    if PURE.iter().any(|pure| file == *pure || (pure.ends_with('/') && file.starts_with(pure))) {
        for (line, path) in &scan.paths {
            if let Some(what) = impure(path) {
                found(*line, format!("{what}: this file is pure, it does no I/O and reads no clock"));
            }
        }
        for line in &scan.elapsed {
            found(*line, "elapsed(): this file is pure, it reads no clock".to_owned());
        }
    }
    if file == "observer/src/collect.rs" || file.starts_with("observer/src/collect/") {
        for (line, path) in scan.paths.iter().filter(|(_, path)| reaches_emit(path)) {
            found(*line, format!("{path}: collect never uses emit"));
        }
    }
    if NAMED.iter().any(|folder| file.starts_with(folder)) {
        for (line, literal) in &scan.literals {
            if file != CATALOGUE && literal.split(not_in_a_name).any(is_metric) {
                found(*line, format!("\"{literal}\": metric names stand only in {CATALOGUE}"));
            }
            if file != KERNEL_NAMES && project.kernel_names.contains(literal) {
                found(*line, format!("\"{literal}\": names of maps and programs stand only in {KERNEL_NAMES}"));
            }
        }
    }
    Ok(findings)
}

fn parse(file: &str, text: &str) -> Result<File> {
    syn::parse_file(text).with_context(|| format!("{file}: cannot be read as Rust"))
}

fn impure(path: &str) -> Option<&str> {
    if path == HARMLESS {
        return None;
    }
    let below = |whole: &str| path.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let clock =
        ["Instant::now", "SystemTime::now"].iter().any(|now| path == *now || path.ends_with(&format!("::{now}")));
    (clock || IMPURE.iter().any(|whole| below(whole))).then_some(path)
}

fn reaches_emit(path: &str) -> bool {
    let mut parts = path.split("::").skip_while(|part| ["crate", "super", "self", "observer"].contains(part));
    path.contains("::") && parts.next() == Some("emit")
}

fn not_in_a_name(c: char) -> bool {
    !c.is_ascii_alphanumeric() && !"_.".contains(c)
}

fn is_metric(word: &str) -> bool {
    let rest = METRIC_PREFIXES.iter().find_map(|prefix| word.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())) && !NO_METRICS.contains(&word)
}

/// What one file uses, outside its tests.
#[derive(Default)]
struct Scan {
    /// Line and path, as written; what a `use` tree names is spelled out.
    paths: Vec<(usize, String)>,
    literals: Vec<(usize, String)>,
    elapsed: Vec<usize>,
    ignored_tests: Vec<usize>,
    /// Modules in files of their own that only tests compile.
    test_modules: Vec<String>,
    in_tests: bool,
}

impl Scan {
    fn path(&mut self, span: Span, path: String) {
        if !self.in_tests {
            self.paths.push((span.start().line, path));
        }
    }

    fn literal(&mut self, span: Span, text: String) {
        if !self.in_tests {
            self.literals.push((span.start().line, text));
        }
    }

    fn use_tree(&mut self, before: &str, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.use_tree(&format!("{before}{}::", path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(before, item)),
            UseTree::Name(name) if name.ident == "self" => {
                self.path(tree.span(), before.trim_end_matches("::").to_owned());
            }
            UseTree::Name(name) => self.path(tree.span(), format!("{before}{}", name.ident)),
            UseTree::Rename(rename) => self.path(tree.span(), format!("{before}{}", rename.ident)),
            UseTree::Glob(_) => self.path(tree.span(), before.trim_end_matches("::").to_owned()),
        }
    }

    /// The inside of a macro is no syntax yet: paths and strings are picked from its tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Option<(Span, String)> = None;
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) => {
                    path = match path.take() {
                        Some((span, text)) if colons == 2 => Some((span, format!("{text}::{ident}"))),
                        before => {
                            self.flush(before);
                            Some((ident.span(), ident.to_string()))
                        }
                    };
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && path.is_some() => {
                    colons += 1;
                    continue;
                }
                TokenTree::Literal(literal) => {
                    if let Lit::Str(text) = Lit::new(literal.clone()) {
                        self.literal(text.span(), text.value());
                    }
                }
                TokenTree::Group(group) if group.delimiter() != Delimiter::None => self.tokens(group.stream()),
                _ => {}
            }
            colons = 0;
            self.flush(path.take());
        }
        self.flush(path);
    }

    fn flush(&mut self, path: Option<(Span, String)>) {
        if let Some((span, path)) = path {
            self.path(span, path);
        }
    }

    fn inside(&mut self, attributes: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let outside = self.in_tests;
        self.in_tests |= attributes.iter().any(is_test);
        visit(self);
        self.in_tests = outside;
    }
}

fn is_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("test")
        || (attribute.path().is_ident("cfg")
            && attribute.parse_args::<Meta>().is_ok_and(|condition| match condition {
                Meta::Path(path) => path.is_ident("test"),
                Meta::List(list) => list.path.is_ident("any") && list.tokens.to_string().contains("test"),
                Meta::NameValue(_) => false,
            }))
}

impl Visit<'_> for Scan {
    fn visit_attribute(&mut self, attribute: &Attribute) {
        if attribute.path().is_ident("ignore") {
            self.ignored_tests.push(attribute.span().start().line);
        }
        // Documentation is free to name things; other attributes hold nothing of interest.
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        self.inside(&item.attrs, |scan| {
            if scan.in_tests && item.content.is_none() {
                scan.test_modules.push(item.ident.to_string());
            }
            visit::visit_item_mod(scan, item);
        });
    }

    fn visit_item_fn(&mut self, item: &ItemFn) {
        self.inside(&item.attrs, |scan| visit::visit_item_fn(scan, item));
    }

    fn visit_item_impl(&mut self, item: &ItemImpl) {
        self.inside(&item.attrs, |scan| visit::visit_item_impl(scan, item));
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        self.inside(&item.attrs, |scan| scan.use_tree("", &item.tree));
    }

    fn visit_path(&mut self, path: &Path) {
        let text = path.segments.iter().map(|part| part.ident.to_string()).collect::<Vec<_>>().join("::");
        self.path(path.span(), text);
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &ExprMethodCall) {
        if call.method == "elapsed" && !self.in_tests {
            self.elapsed.push(call.method.span().start().line);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_lit_str(&mut self, literal: &LitStr) {
        self.literal(literal.span(), literal.value());
    }

    fn visit_macro(&mut self, invocation: &Macro) {
        self.tokens(invocation.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, code: &str) -> Vec<(usize, String)> {
        let project = Project { kernel_names: vec!["SERIES".to_owned()], test_files: Vec::new() };
        let findings = rules(file, &format!("//! What it is for.\n{code}"), &project).expect("the example parses");
        findings.into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn pure_code_does_no_io_however_it_is_written() {
        for bad in [
            "use std::fs;",
            "use std::{collections::BTreeMap, fs::read};",
            "use std::net::{IpAddr, TcpStream as Stream};",
            "use tokio::sync::mpsc::*;",
            "fn f() { std::fs::read(\"x\").ok(); }",
            "fn f() { println!(\"{:?}\", std::env::args()); }",
            "impl aya::Thing for X {}",
        ] {
            assert_eq!(found("observer/model/src/counter.rs", bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn pure_code_reads_no_clock() {
        let file = "observer-ebpf/proto/src/http1.rs";
        assert_eq!(found(file, "fn f() { let t = std::time::Instant::now(); }").len(), 1);
        assert_eq!(found(file, "use std::time::SystemTime;\nfn f() { SystemTime::now(); }")[0].0, 3);
        assert_eq!(found(file, "fn f(t: Instant) { t.elapsed(); }").len(), 1);
    }

    #[test]
    fn pure_code_may_use_the_rest_and_its_tests_may_do_anything() {
        let good = "use std::{net::IpAddr, time::{Duration, Instant}};\nunsafe impl aya::Pod for X {}\n\
                    #[cfg(test)] mod tests { fn f() { std::fs::read(\"golden\").ok(); } }";
        assert!(found("observer/model/src/lib.rs", good).is_empty());
        assert!(found("observer/src/serve.rs", "use tokio::net::TcpListener;").is_empty());
    }

    #[test]
    fn collect_never_uses_emit() {
        for bad in ["use crate::emit::Queue;", "use super::emit;", "fn f() { crate::emit::send(); }"] {
            assert_eq!(found("observer/src/collect/kernel.rs", bad).len(), 1, "{bad}");
        }
        assert!(found("observer/src/collect.rs", "fn f(log: Log) { log.emit(); crate::model::emit(); }").is_empty());
        assert!(found("observer/src/app.rs", "use crate::emit;").is_empty());
    }

    #[test]
    fn metric_names_stand_in_the_catalogue() {
        let bad = "const A: &str = \"istio_requests_total\";";
        assert_eq!(found("observer/model/src/encode/prometheus.rs", bad).len(), 1);
        assert_eq!(found("observer/src/app.rs", "fn f() { g!(x, \"istio.request.bytes\"); }").len(), 1);
        assert_eq!(
            found("observer/src/app.rs", "const A: &str = \"the mesh_observer_uncounted_total family\";").len(),
            1
        );
        assert!(found(CATALOGUE, bad).is_empty());
        assert!(found("tests/src/referee.rs", bad).is_empty());
        assert!(
            found("observer/src/discovery.rs", "/// istio_requests_total\nconst A: &str = \"istio.io/rev\";")
                .is_empty()
        );
    }

    #[test]
    fn kernel_names_stand_in_one_file() {
        let bad = "const A: &str = \"SERIES\";";
        assert_eq!(found("observer/src/collect/kernel.rs", bad).len(), 1);
        assert!(found(KERNEL_NAMES, bad).is_empty());
        assert!(found("observer/src/collect/kernel.rs", "static SERIES: u32 = 0;").is_empty());
    }

    #[test]
    fn a_file_that_only_tests_compile_is_a_test() {
        let sources = [
            ("observer/src/model.rs", "#[cfg(test)] mod fixture; mod counter;"),
            ("observer/src/model/fixture.rs", "//! Examples.\nconst A: &str = \"istio_requests_total\";"),
        ]
        .map(|(file, text)| (file.to_owned(), text.to_owned()));
        let project = Project::of(&sources).expect("both parse");
        assert_eq!(project.test_files, ["observer/src/model/fixture.rs"]);
        assert_eq!(rules(&sources[1].0, &sources[1].1, &project).expect("parses"), []);
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        let findings = rules("observer/src/app.rs", "fn f() {}\n", &Project::default()).expect("parses");
        assert!(findings[0].what.contains("module comment"), "{findings:?}");
    }

    #[test]
    fn no_test_is_ignored() {
        assert_eq!(found("tests/tests/http.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}")[0].0, 3);
    }

    #[test]
    fn a_rule_about_a_file_that_is_gone_is_found() {
        assert_eq!(missing_files(&[]).len(), PURE.len() + UNSAFE.len() + 2);
    }
}
