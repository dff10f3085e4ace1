//! Wavefront's own decoders and validation, at the documented limits, accept every line of the observer.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use harness::wavefront::{decoded_spans, judged};

/// The observer's own tests compare the golden files with the encoder's output, byte for byte.
#[test]
fn every_golden_line_is_taken() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observer/model/golden");
    let (mut files, mut lines) = (0, String::new());
    for entry in fs::read_dir(&golden)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wavefront") {
            files += 1;
            lines.push_str(&fs::read_to_string(path)?);
        }
    }
    ensure!(files >= 4, "only {files} files in {}", golden.display());
    let judged = judged(&lines)?;
    // The observer separates lines by line feeds only; a decoder that splits them elsewhere would have more answers.
    ensure!(judged.len() == lines.matches('\n').count(), "{} answers", judged.len());
    for (line, said) in lines.split('\n').zip(&judged) {
        ensure!(said == "ok", "{said}: {line}");
    }
    println!("{} lines of {files} files are taken", judged.len());
    Ok(())
}

/// A decoder that accepts everything would prove nothing.
#[test]
fn what_breaks_the_rules_is_refused() -> Result<()> {
    let tags = |count: usize| (0..count).map(|number| format!(" \"k{number}\"=\"v\"")).collect::<String>();
    let bad = [
        "\"a.b\" 1 1700000000 \"k\"=\"v\"".to_owned(),
        "\"a.b\" x 1700000000 source=\"n\"".to_owned(),
        "\"a b\" 1 1700000000 source=\"n\"".to_owned(),
        "\"a.b\" 1 1700000000 source=\"n\" \"k\"=\"\"".to_owned(),
        "\"a.b\" 1 1700000000 source=\"n\" \"k\"=\"v\\\"".to_owned(),
        "\"a.b\" 1 1700000000 source=\"n\" \"k k\"=\"v\"".to_owned(),
        format!("\"a.b\" 1 1700000000 source=\"n\" \"k\"=\"{}\"", "v".repeat(254)),
        format!("\"a.b\" 1 1700000000 source=\"n\" \"{}\"=\"v\"", "k".repeat(65)),
        format!("\"a.b\" 1 1700000000 source=\"n\"{}", tags(21)),
        format!("\"a.{}\" 1 1700000000 source=\"n\"", "b".repeat(255)),
        format!("\"a.b\" 1 1700000000 source=\"{}\"", "n".repeat(129)),
        "\"\u{2206}a.b\" 0 1700000000 source=\"n\"".to_owned(),
        "!M 1700000000 \"a.b\" source=\"n\"".to_owned(),
        "!M 1700000000 #3000000000 1.5 \"a.b\" source=\"n\"".to_owned(),
    ];
    let judged = judged(&(bad.join("\n") + "\n"))?;
    ensure!(judged.len() == bad.len(), "{} answers", judged.len());
    for (line, said) in bad.iter().zip(&judged) {
        ensure!(said != "ok", "{line} is taken");
    }
    Ok(())
}

#[test]
fn every_golden_span_is_taken_and_read_as_it_was_meant() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observer/model/golden/spans.wavefront-spans");
    let lines = fs::read_to_string(golden)?;
    let decoded = decoded_spans(&lines)?;
    ensure!(decoded.len() == lines.matches('\n').count() && decoded.len() > 5, "{} answers", decoded.len());
    for (line, said) in lines.split('\n').zip(&decoded) {
        ensure!(said.starts_with("ok\t1700000100000\t"), "{said}: {line}");
        for field in ["service=", "application=default", "cluster=c1", "shard=none", "source=node-1", "team=a"] {
            ensure!(said.contains(&format!("\t{field}")), "{field}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_span_that_breaks_the_rules_is_refused() -> Result<()> {
    let ids =
        "\"traceId\"=\"00000000-0000-0000-0000-000000000005\" \"spanId\"=\"00000000-0000-0000-0000-000000000001\"";
    let names = "\"application\"=\"a\" \"service\"=\"s\"";
    let good = format!("\"HTTP\" source=\"n\" {ids} {names} 1700000000000 5");
    let bad = [
        format!("\"HTTP\" source=\"n\" {names} 1700000000000 5"),
        format!("\"HTTP\" source=\"n\" {ids} {names} x 5"),
        format!("\"{}\" source=\"n\" {ids} {names} 1700000000000 5", "b".repeat(129)),
        format!("\"HTTP\" source=\"n\" {ids} {names} \"k\"=\"{}\" 1700000000000 5", "v".repeat(129)),
        format!("\"HTTP\" source=\"n\" {ids} {names} \"k\"=\"v\\\" 1700000000000 5"),
    ];
    let judged = decoded_spans(&(bad.join("\n") + "\n" + &good + "\n"))?;
    ensure!(judged.len() == bad.len() + 1 && judged[bad.len()].starts_with("ok\t"), "{judged:?}");
    for (line, said) in bad.iter().zip(&judged) {
        ensure!(!said.starts_with("ok"), "{line} is taken: {said}");
    }
    Ok(())
}
