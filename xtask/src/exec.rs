//! Child processes: one way to run them, one way to say that they failed; and where things lie in the repository.

use std::{
    env,
    ffi::OsStr,
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Runs a command that shows its own output; anything but success is an error with the whole command line.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command quietly and returns its standard output; on failure the error carries its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let result = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    let Output { status, stdout, stderr } = result;
    if !status.success() {
        bail!("`{}` failed: {status}\n{}", line(command), String::from_utf8_lossy(&stderr).trim_end());
    }
    String::from_utf8(stdout).with_context(|| format!("`{}` wrote something that is not UTF-8", line(command)))
}

/// One line on standard error that says what is going on.
pub(crate) fn say(message: impl AsRef<str>) {
    let (bold, plain) = if stderr().is_terminal() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    eprintln!("{bold}xtask{plain} {}", message.as_ref());
}

/// Says what begins, does it, says how long it took.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format!("{what} …"));
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(format!("{what}: {outcome} in {}", seconds(start.elapsed())));
    result
}

/// A duration as people read it: `3.4 s`, `2 min 5 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// Reads a duration such as `20s`, `500ms` or `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("`{text}` is no duration: write 500ms, 20s or 2m")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` begins with no number: write 500ms, 20s or 2m"))?;
    Ok(Duration::from_millis(number.saturating_mul(milliseconds)))
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a folder of the workspace")
}

/// Tools too big to build every time live here: `MESH_OBSERVER_CACHE`, or `.cache` in the repository.
pub(crate) fn cache() -> PathBuf {
    env::var_os("MESH_OBSERVER_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from)
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the repository.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// The cargo that runs this task, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The machine's target, as compilers name it.
pub(crate) fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = output(Command::new(rustc).args(["--version", "--verbose"]).current_dir(root()))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say its host")
}

/// Where a program lies: `PATH`, and the folders of system programs that a user's `PATH` may lack.
pub(crate) fn which(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program.as_ref()))
        .find(|file| file.is_file())
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_=+.,/:@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_whole_command_line() {
        let error = exec(Command::new("sh").args(["-c", "exit 3"])).expect_err("sh exits 3");
        assert_eq!(error.to_string(), "`sh -c 'exit 3'` failed: exit status: 3");
    }

    #[test]
    fn a_quiet_failure_carries_what_the_command_said() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 1"])).expect_err("sh exits 1");
        assert!(error.to_string().ends_with("exit status: 1\nno"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = exec(&mut Command::new("no-such-program")).expect_err("there is none");
        assert_eq!(error.to_string(), "cannot start `no-such-program`");
    }

    #[test]
    fn durations_are_understood_or_refused_with_an_example() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["20", "s", "-1s", "1h", ""] {
            assert!(duration(bad).is_err_and(|error| error.contains("write 500ms")), "{bad}");
        }
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(3_420)), "3.4 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
