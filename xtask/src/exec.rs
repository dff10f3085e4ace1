//! Child processes and their errors, and paths of the repository.

use std::{
    env,
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
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

/// Writes a progress line to standard error.
pub(crate) fn say(message: impl AsRef<str>) {
    let (bold, plain) = if stderr().is_terminal() { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
    eprintln!("{bold}xtask{plain} {}", message.as_ref());
}

/// Runs `work` with a line before it, and one with its result and duration after it.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format!("{what} …"));
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(format!("{what}: {outcome} in {:.1?}", start.elapsed()));
    result
}

/// Returns the root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a directory of the workspace")
}

/// Returns the directory of installed tools: `MESH_OBSERVER_CACHE`, or `.cache` in the repository.
pub(crate) fn cache() -> PathBuf {
    env::var_os("MESH_OBSERVER_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from)
}

/// Returns Cargo's target directory: `CARGO_TARGET_DIR`, or `target` in the repository.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |directory| root().join(directory))
}

/// Returns the cargo that runs this task, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Returns the target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = output(Command::new(rustc).args(["--version", "--verbose"]).current_dir(root()))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say its host")
}

/// Returns the path of a program in `PATH`, or in the directories of system programs that a user's `PATH` may lack.
pub(crate) fn which(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program.as_ref()))
        .find(|file| file.is_file())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
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
}
