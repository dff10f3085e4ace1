//! Coverage-guided fuzzing of every parser with the stable compiler.
//!
//! LLVM's fuzzer is linked from a crate, and coverage comes from stable compiler options, so neither a nightly nor
//! cargo-fuzz is needed. A target is a file in `tests/fuzz/targets`; its minimised inputs are in `tests/fuzz/corpus`. New
//! inputs are written to the target directory, and with `--keep` to the corpus.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::exec::{cargo, exec, host, output, root, say, target, timed};

/// Compiler options for coverage: counters on every edge, and the operands of comparisons.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
const SANITIZER: &str = "-Zsanitizer=address -Cdebuginfo=1";
/// Suffix of the sanitizer's library.
const RUNTIME: &str = "_rt.asan.a";
const LARGEST_INPUT: u32 = 8192;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this target (a file name in tests/fuzz/targets).
    target: Option<String>,
    /// How long each target runs.
    #[arg(long = "for", value_parser = humantime::parse_duration, default_value = "60s")]
    time: Duration,
    /// How many inputs each target tries, instead of a duration.
    #[arg(long, conflicts_with = "time")]
    executions: Option<u64>,
    /// Check memory accesses (AddressSanitizer), at about half the speed.
    #[arg(long)]
    sanitize: bool,
    /// Add the inputs that reach something new to the corpus in the repository.
    #[arg(long)]
    keep: bool,
}

/// Runs one target or all.
pub(crate) fn run(options: &Options) -> Result<()> {
    let all = targets()?;
    let chosen: Vec<&String> =
        all.iter().filter(|name| options.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    ensure!(!chosen.is_empty(), "there is no such fuzz target; there are: {}", all.join(", "));
    let programs = build(options.sanitize)?;
    for name in &chosen {
        let program = programs.join(name);
        fuzz(name, &program, options)?;
        if options.keep {
            keep(name, &program)?;
        }
    }
    Ok(())
}

/// Runs every target for this long.
pub(crate) fn all(time: Duration) -> Result<()> {
    run(&Options { target: None, time, executions: None, keep: false, sanitize: false })
}

/// Returns the directory of the programs: another one for those with the sanitizer, so that none is built again.
fn build(sanitize: bool) -> Result<PathBuf> {
    let place = if sanitize { directory().join("sanitized") } else { directory() };
    if sanitize {
        sanitizer()?;
    }
    let flags = if sanitize { [COVERAGE, SANITIZER].join(" ") } else { COVERAGE.to_owned() };
    let flags = flags.split_whitespace().collect::<Vec<_>>().join("\x1f");
    timed("building the fuzz targets", || {
        // The target is named so that build scripts and macros are not instrumented.
        exec(
            cargo()
                .args(["build", "--locked", "--package", "fuzz", "--bins", "--target", &host()?, "--target-dir"])
                .arg(&place)
                .env("CARGO_ENCODED_RUSTFLAGS", flags)
                // Sanitizers come with every compiler and are unstable by name.
                .envs(sanitize.then_some(("RUSTC_BOOTSTRAP", "1")))
                // Assertions and overflow checks stay; without optimisation nothing would be reached in time.
                .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
                .env("CARGO_INCREMENTAL", "0"),
        )
    })?;
    Ok(place.join(host()?).join("debug"))
}

/// Checks that the compiler has the sanitizer's runtime, which Debian's lacks.
fn sanitizer() -> Result<()> {
    let libraries = output(Command::new("rustc").args(["--print", "target-libdir"]).current_dir(root()))?;
    let libraries = Path::new(libraries.trim());
    let files = fs::read_dir(libraries).with_context(|| format!("{}: cannot read", libraries.display()))?;
    let is_there = files.flatten().any(|file| file.file_name().to_string_lossy().ends_with(RUNTIME));
    ensure!(is_there, "{} has no library *{RUNTIME}: --sanitize needs a compiler from rustup", libraries.display());
    Ok(())
}

fn fuzz(name: &str, program: &Path, options: &Options) -> Result<()> {
    let (found, kept, artifacts) = (found(name), kept(name), directory().join("artifacts"));
    for directory in [&found, &kept, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("{}: cannot create", directory.display()))?;
    }
    let (limit, length) = match options.executions {
        Some(executions) => (format!("-runs={executions}"), format!("with {executions} inputs")),
        None => {
            let seconds = options.time.as_secs().max(1);
            (format!("-max_total_time={seconds}"), format!("for {seconds} s"))
        }
    };
    timed(&format!("fuzzing {name} {length}"), || {
        let mut command = Command::new(program);
        command
            .arg(limit)
            .arg(format!("-max_len={LARGEST_INPUT}"))
            .arg(format!("-artifact_prefix={}/{name}-", artifacts.display()))
            .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0"])
            .args([&found, &kept])
            .stdin(Stdio::null());
        let result = command.output().with_context(|| format!("cannot start {}", program.display()))?;
        let said = String::from_utf8_lossy(&result.stderr);
        if !result.status.success() {
            bail!(
                "{name} fails on an input, kept as {}/{name}-*; to see it again, run {} with that file\n{said}",
                artifacts.display(),
                program.display()
            );
        }
        let value = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
            line.map_or("unknown", str::trim).to_owned()
        };
        let [tried, slowest, memory] = ["number_of_executed_units", "slowest_unit_time_sec", "peak_rss_mb"].map(value);
        say(format!("{name}: {tried} inputs tried, none fails; slowest {slowest} s, most memory {memory} MB"));
        Ok(())
    })
}

/// Merges what is new into the repository's corpus.
fn keep(name: &str, program: &Path) -> Result<()> {
    let corpus = kept(name);
    output(Command::new(program).args(["-merge=1", "-verbosity=0"]).arg(&corpus).arg(found(name)))?;
    say(format!("{name}: {} inputs in {}", fs::read_dir(&corpus)?.count(), corpus.display()));
    Ok(())
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("tests/fuzz/targets");
    let mut names = fs::read_dir(&directory)
        .with_context(|| format!("{}: cannot read", directory.display()))?
        .map(|entry| Ok(Path::new(&entry?.file_name()).with_extension("").display().to_string()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn found(name: &str) -> PathBuf {
    directory().join("corpus").join(name)
}

fn kept(name: &str) -> PathBuf {
    root().join("tests/fuzz/corpus").join(name)
}

fn directory() -> PathBuf {
    target().join("fuzz")
}
