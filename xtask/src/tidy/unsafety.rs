//! Where `unsafe` may stand, and that every block says why it is sound: of the kernel programs too, which clippy never sees.

use anyhow::{Context as _, Result};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{
    ExprUnsafe, ItemImpl, Macro,
    visit::{self, Visit},
};

use super::Finding;

/// The product's files that have any, or a folder if it ends in a slash. Tests and tasks may have it anywhere.
pub(super) const UNSAFE: [&str; 19] = [
    "observer/src/app.rs",
    "observer/src/collect/scrape.rs",
    "observer/src/kernel/sys.rs",
    "observer/src/collect/self_usage.rs",
    "observer/src/system/seccomp.rs",
    "observer/src/discovery/watch.rs",
    "observer/src/system/environment.rs",
    "observer/src/main.rs",
    "observer-ebpf/common/src/lib.rs",
    "observer-ebpf/proto/src/address.rs",
    "observer-ebpf/proto/src/atomic.rs",
    "observer-ebpf/proto/src/connection.rs",
    "observer-ebpf/proto/src/flow.rs",
    "observer-ebpf/proto/src/hpack.rs",
    "observer-ebpf/proto/src/http2.rs",
    "observer-ebpf/proto/src/http2/table.rs",
    "observer-ebpf/proto/src/lib.rs",
    "observer-ebpf/proto/src/reassembly.rs",
    "observer-ebpf/src/programs/",
];
const PRODUCT: [&str; 2] = ["observer/src/", "observer-ebpf/"];
/// Lines between the reason and what it is for: the rest of the comment, and the beginning of the statement.
const NEAR: usize = 12;

/// Every breach in one file.
pub(super) fn rules(file: &str, text: &str) -> Result<Vec<Finding>> {
    let mut scan = Scan::default();
    scan.visit_file(&syn::parse_file(text).with_context(|| format!("{file}: cannot be read as Rust"))?);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let allowed = !PRODUCT.iter().any(|folder| file.starts_with(folder))
        || UNSAFE.iter().any(|place| file == *place || (place.ends_with('/') && file.starts_with(place)));
    let breaches = scan.lines.into_iter().filter_map(|line| {
        let what = if !allowed {
            "unsafe code stands only in the modules that tidy lists: keep to them, or add to the list with reason"
        } else if !has_reason(&lines[..line]) {
            "unsafe code without a comment `// SAFETY: …` that says why it is sound"
        } else {
            return None;
        };
        Some(Finding { file: file.to_owned(), line, what: what.to_owned() })
    });
    Ok(breaches.collect())
}

/// Whether the last of these lines has a reason close above it, or on it.
fn has_reason(lines: &[&str]) -> bool {
    lines.iter().rev().take(NEAR).take_while(|line| !line.is_empty()).any(|line| line.contains("// SAFETY: "))
}

/// Lines of blocks and implementations. An `unsafe fn` asks its callers, whose blocks these are.
#[derive(Default)]
struct Scan {
    lines: Vec<usize>,
}

impl Scan {
    fn found(&mut self, span: Span) {
        self.lines.push(span.start().line);
    }

    /// The inside of a macro is no syntax yet.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut before = None;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) if ident == "unsafe" => before = Some(ident.span()),
                TokenTree::Ident(ident) if ident == "impl" => {
                    before.take().into_iter().for_each(|span| self.found(span))
                }
                TokenTree::Group(group) => {
                    before.take().into_iter().for_each(|span| self.found(span));
                    self.tokens(group.stream());
                }
                _ => before = None,
            }
        }
    }
}

impl Visit<'_> for Scan {
    fn visit_expr_unsafe(&mut self, block: &ExprUnsafe) {
        self.found(block.unsafe_token.span);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.found(token.span);
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_macro(&mut self, item: &Macro) {
        self.tokens(item.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<usize> {
        rules(file, text).expect("parses").into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn stands_only_where_it_is_listed() {
        let text = "fn f() {\n    // SAFETY: no pointers.\n    unsafe { g() }\n}\n";
        assert_eq!(found("observer/src/model.rs", text), [3]);
        for file in ["observer/src/system/seccomp.rs", "observer-ebpf/src/programs/packet.rs", "tests/src/net.rs"] {
            assert!(found(file, text).is_empty(), "{file}");
        }
    }

    #[test]
    fn says_why() {
        let file = "observer-ebpf/proto/src/atomic.rs";
        assert_eq!(found(file, "fn f() {\n    unsafe { g() }\n}\n"), [2]);
        assert_eq!(found(file, "// SAFETY: of something else.\n\nunsafe impl Send for X {}\n"), [3]);
        assert_eq!(found(file, "m!(\n    unsafe { g() }\n);\nm!(unsafe impl Sync for X {});\n"), [2, 4]);
        assert!(found(file, "// SAFETY: integers.\n// All zero is valid.\nunsafe impl Pod for X {}\n").is_empty());
        assert!(found(file, "/// # Safety\n/// As the caller says.\nunsafe fn f() {}\n").is_empty());
    }
}
