//! The page at `/`: files in the binary, which load nothing from elsewhere.

use bytes::Bytes;
use hyper::{
    Response,
    header::{self, HeaderMap, HeaderName},
};

use super::{BodyStream, compressed, with};

/// The page's own files and nothing else: no inline code or style, no frames, no forms.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    path: &'static str,
    content_type: &'static str,
    content: &'static [u8],
}

macro_rules! files {
    ($($path:literal = $file:literal, $content_type:expr;)*) => {
        static FILES: &[File] = &[$(File {
            path: $path,
            content_type: $content_type,
            content: include_bytes!(concat!("page/", $file)),
        },)*];
    };
}

files! {
    "/" = "index.html", HTML;
    "/style.css" = "style.css", CSS;
    "/icon.svg" = "icon.svg", "image/svg+xml";
    "/app.js" = "app.js", SCRIPT;
    "/dom.js" = "dom.js", SCRIPT;
    "/format.js" = "format.js", SCRIPT;
    "/heat.js" = "heat.js", SCRIPT;
    "/layout.js" = "layout.js", SCRIPT;
    "/map.js" = "map.js", SCRIPT;
    "/model.js" = "model.js", SCRIPT;
    "/panels.js" = "panels.js", SCRIPT;
    "/table.js" = "table.js", SCRIPT;
    "/vendor/d3-dispatch.min.js" = "vendor/d3-dispatch.min.js", SCRIPT;
    "/vendor/d3-force.min.js" = "vendor/d3-force.min.js", SCRIPT;
    "/vendor/d3-quadtree.min.js" = "vendor/d3-quadtree.min.js", SCRIPT;
    "/vendor/d3-timer.min.js" = "vendor/d3-timer.min.js", SCRIPT;
    "/vendor/LICENSE" = "vendor/LICENSE", "text/plain; charset=utf-8";
}

impl File {
    /// Returns the file of a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        FILES.iter().copied().find(|file| file.path == path)
    }

    pub(super) fn response(self, headers: &HeaderMap) -> Response<BodyStream> {
        let content = Bytes::from_static(self.content);
        let response = compressed(headers, Box::new(std::iter::once(content)), BodyStream::of);
        let headers: [(HeaderName, &'static str); 5] = [
            (header::CONTENT_TYPE, self.content_type),
            // Another version of the observer has other files.
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        headers.into_iter().fold(response, |response, (name, value)| with(response, name, value))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use flate2::{Compression, write::GzEncoder};
    use ring::digest::{SHA256, digest};

    use super::*;

    /// Size that the whole page must not exceed.
    const MAX_COMPRESSED: usize = 500_000;

    #[test]
    fn the_page_is_small() {
        let compressed = FILES.iter().map(|file| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            std::io::Write::write_all(&mut encoder, file.content).unwrap();
            encoder.finish().unwrap().len()
        });
        let size: usize = compressed.sum();
        println!("{size} bytes compressed");
        assert!(size < MAX_COMPRESSED, "{size}");
    }

    #[test]
    fn every_file_of_the_directory_is_served() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/page");
        for directory in [root.clone(), root.join("vendor")] {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("/{}", path.strip_prefix(&root).unwrap().display()).replace("/index.html", "/");
                assert!(path.is_dir() || name.ends_with("SHA256SUMS") || File::of(&name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn libraries_are_as_their_packages_have_them() {
        let sums = include_str!("page/vendor/SHA256SUMS").lines().map(|line| line.split_once("  ").unwrap());
        let sums: Vec<_> = sums.collect();
        assert_eq!(sums.len(), FILES.iter().filter(|file| file.path.ends_with(".min.js")).count());
        for (sum, name) in sums {
            let file = File::of(&format!("/vendor/{name}")).unwrap();
            let found: String =
                digest(&SHA256, file.content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sum, "{name}");
        }
    }

    #[test]
    fn nothing_parses_labels_as_markup_or_code() {
        for file in FILES.iter().filter(|file| file.content_type == SCRIPT) {
            let text = std::str::from_utf8(file.content).unwrap();
            for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(way), "{}: {way}", file.path);
            }
        }
    }
}
