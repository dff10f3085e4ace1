//! Names of metrics, and of the kernel's maps and programs, stand in one file each.

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, ItemFn, ItemImpl, ItemMod, Lit, LitStr, Macro,
    visit::{self, Visit},
};

use super::Finding;

const CATALOGUE: &str = "catalogue.rs";
const KERNEL_NAMES: &str = "names.rs";
/// The product. Tests and tasks name what they expect to see.
const PRODUCT: [&str; 2] = ["observer/", "observer-ebpf/"];
const METRIC_PREFIXES: [&str; 3] = ["istio_", "istio.", "mesh_observer_"];
/// Istio's site and the executable of citadel are not metrics.
const NO_METRICS: [&str; 2] = ["istio.io", "istio_ca"];

/// Finds names outside of their files. `sources` are names of files and their texts.
pub(super) fn rules(sources: &[(String, String)]) -> Vec<Finding> {
    let is_product = |file: &str| PRODUCT.iter().any(|directory| file.starts_with(directory)) && file.contains("/src/");
    let scans: Vec<(&str, Scan)> = sources
        .iter()
        .filter(|(file, _)| file.ends_with(".rs") && is_product(file))
        .map(|(file, text)| (file.as_str(), Scan::of(text)))
        .collect();
    let named = |file: &str, name: &str| file.rsplit('/').next() == Some(name);
    let names = scans.iter().filter(|(file, _)| named(file, KERNEL_NAMES)).flat_map(|(_, scan)| &scan.literals);
    let kernel_names: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
    let test_files: Vec<String> = scans.iter().flat_map(|(file, scan)| scan.test_files(file)).collect();
    let mut findings = Vec::new();
    for (file, scan) in scans.iter().filter(|(file, _)| !test_files.iter().any(|test| test == file)) {
        for (line, literal) in &scan.literals {
            let mut found = |what: String| findings.push(Finding { file: (*file).to_owned(), line: *line, what });
            if !named(file, CATALOGUE)
                && literal.split(|c: char| !c.is_ascii_alphanumeric() && !"_.".contains(c)).any(is_metric)
            {
                found(format!("\"{literal}\": metric names stand only in {CATALOGUE}"));
            }
            if !named(file, KERNEL_NAMES) && kernel_names.contains(&literal.as_str()) {
                found(format!("\"{literal}\": names of maps and programs stand only in {KERNEL_NAMES}"));
            }
        }
    }
    if kernel_names.is_empty() || !scans.iter().any(|(file, _)| named(file, CATALOGUE)) {
        let what = format!("no {CATALOGUE}, or no {KERNEL_NAMES} with names: this rule would find nothing");
        findings.push(Finding { file: PRODUCT.join(", "), line: 0, what });
    }
    findings
}

fn is_metric(word: &str) -> bool {
    let rest = METRIC_PREFIXES.iter().find_map(|prefix| word.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())) && !NO_METRICS.contains(&word)
}

/// String literals of one file outside of its tests, with their lines.
#[derive(Default)]
struct Scan {
    literals: Vec<(usize, String)>,
    /// Modules in files of their own that only tests compile.
    test_modules: Vec<String>,
}

impl Scan {
    fn of(text: &str) -> Self {
        let mut scan = Self::default();
        if let Ok(file) = syn::parse_file(text) {
            scan.visit_file(&file);
        }
        scan
    }

    fn test_files(&self, file: &str) -> Vec<String> {
        let (directory, name) = file.rsplit_once('/').unwrap_or(("", file));
        let directory = match name.trim_end_matches(".rs") {
            "lib" | "main" | "mod" => directory.to_owned(),
            module => format!("{directory}/{module}"),
        };
        self.test_modules.iter().map(|module| format!("{directory}/{module}.rs")).collect()
    }

    fn literal(&mut self, literal: &LitStr) {
        self.literals.push((literal.span().start().line, literal.value()));
    }

    /// Reads the literals of a macro's tokens, which are not syntax yet.
    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Literal(literal) => {
                    if let Lit::Str(text) = Lit::new(literal) {
                        self.literal(&text);
                    }
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = attribute.meta.require_list().map_or_else(|_| String::new(), |list| list.tokens.to_string());
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg") && condition.contains("test") && !condition.contains("not"))
    })
}

impl Visit<'_> for Scan {
    /// Attributes are skipped: documentation is free to name things.
    fn visit_attribute(&mut self, _: &Attribute) {}

    fn visit_item_mod(&mut self, item: &ItemMod) {
        match (is_test(&item.attrs), &item.content) {
            (false, _) => visit::visit_item_mod(self, item),
            (true, None) => self.test_modules.push(item.ident.to_string()),
            (true, Some(_)) => {}
        }
    }

    fn visit_item_fn(&mut self, item: &ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_lit_str(&mut self, literal: &LitStr) {
        self.literal(literal);
    }

    fn visit_macro(&mut self, invocation: &Macro) {
        self.tokens(invocation.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, code: &str) -> Vec<usize> {
        let catalogue = "const A: &str = \"istio_requests_total\";\n#[cfg(test)] mod fixture;";
        let sources = [
            ("observer/src/model/catalogue.rs", catalogue),
            ("observer-ebpf/common/src/names.rs", "const SERIES: &str = \"SERIES\";"),
            (file, code),
        ]
        .map(|(file, text)| (file.to_owned(), text.to_owned()));
        rules(&sources).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn names_outside_of_their_files_are_found() {
        let app = "observer/src/app.rs";
        assert_eq!(found(app, "const A: &str = \"istio_requests_total\";"), [1]);
        assert_eq!(found(app, "fn f() {\n g!(x, \"istio.request.bytes\"); }"), [2]);
        assert_eq!(found(app, "const A: &str = \"the mesh_observer_uncounted_total family\";"), [1]);
        assert_eq!(found(app, "const A: &str = \"SERIES\";"), [1]);
    }

    #[test]
    fn tests_documentation_and_other_words_are_free() {
        let app = "observer/src/app.rs";
        assert!(
            found(app, "/// istio_requests_total\nconst A: &str = \"istio.io/rev\"; static SERIES: u32 = 0;")
                .is_empty()
        );
        assert!(found(app, "#[cfg(test)] mod tests { const A: &str = \"SERIES\"; }").is_empty());
        assert!(found("observer/src/model/catalogue/fixture.rs", "const A: &str = \"SERIES\";").is_empty());
        assert!(found("tests/src/pair.rs", "const A: &str = \"istio_requests_total\";").is_empty());
    }

    #[test]
    fn a_rule_without_its_files_is_found() {
        assert_eq!(rules(&[]).len(), 1);
    }
}
