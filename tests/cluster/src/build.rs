//! Builds the cluster's Go programs from pinned modules into the cache of tools; each is built again when its sources
//! change.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use harness::{
    console::timed,
    net::finish,
    tools::{cache, repository, require},
};
use sha2::{Digest as _, Sha256};

/// A Go program below `tests/cluster/go`.
pub(crate) struct Program {
    /// Its name in the cache.
    name: &'static str,
    /// Its module's directory.
    module: &'static str,
    /// Its package in the module.
    package: &'static str,
    /// Variables that the linker sets, by package: without a version, Kubernetes is too old for native sidecars.
    variables: &'static [(&'static str, &'static str)],
    /// How long building takes from an empty build cache.
    takes: &'static str,
}

const KUBERNETES_VERSION: &str = "gitVersion=v1.34.4 gitMajor=1 gitMinor=34 gitTreeState=clean gitCommit=cluster";
const KUBERNETES: &[(&str, &str)] =
    &[("k8s.io/component-base/version", KUBERNETES_VERSION), ("k8s.io/client-go/pkg/version", KUBERNETES_VERSION)];
const ISTIO: &[(&str, &str)] = &[(
    "istio.io/istio/pkg/version",
    "buildVersion=1.32.0 buildTag=1.32.0 buildGitRevision=eed52ebb66ad buildStatus=Clean",
)];

pub(crate) const APISERVER: Program = Program {
    name: "kube-apiserver",
    module: "kube",
    package: "./apiserver",
    variables: KUBERNETES,
    takes: "about 5 minutes of two idle CPUs the first time",
};
pub(crate) const KUBE: Program = Program {
    name: "kube",
    module: "kube",
    package: ".",
    variables: KUBERNETES,
    takes: "about 3 minutes more the first time",
};
pub(crate) const ISTIO_PROGRAM: Program = Program {
    name: "istio",
    module: "istio",
    package: ".",
    variables: ISTIO,
    takes: "about 6 minutes of two idle CPUs the first time",
};
pub(crate) const APP: Program =
    Program { name: "app", module: "app", package: ".", variables: &[], takes: "a few seconds" };

/// Builds every program that is missing or older than its sources.
pub(crate) fn all() -> Result<()> {
    for program in [&APISERVER, &KUBE, &ISTIO_PROGRAM, &APP] {
        program.build()?;
    }
    Ok(())
}

impl Program {
    /// Returns its path in the cache of tools.
    pub(crate) fn path(&self) -> PathBuf {
        cache().join("cluster").join(self.name)
    }

    /// Builds it unless it is as its sources are.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        let path = self.path();
        let stamp = path.with_extension("sources");
        let sources = self.sources()?;
        if path.is_file() && fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
            return Ok(path);
        }
        fs::create_dir_all(cache().join("cluster"))?;
        timed(&format!("building {} from Go modules ({})", self.name, self.takes), || {
            finish(&mut self.command(&path)?, "")
        })?;
        fs::write(&stamp, sources).with_context(|| format!("{}: cannot write", stamp.display()))?;
        Ok(path)
    }

    fn command(&self, output: &Path) -> Result<Command> {
        let mut flags = "-s -w".to_owned();
        for (package, variables) in self.variables {
            for variable in variables.split(' ') {
                write!(flags, " -X {package}.{variable}")?;
            }
        }
        let mut command = Command::new(go()?);
        command.env("CGO_ENABLED", "0").current_dir(self.directory());
        command.args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &flags, "-o"]);
        command.arg(output).arg(self.package);
        Ok(command)
    }

    fn directory(&self) -> PathBuf {
        repository().join("tests/cluster/go").join(self.module)
    }

    /// Returns a hash of what it is built from.
    fn sources(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}", self.variables));
        let directory = self.directory();
        for file in [directory.join("go.mod"), directory.join("go.sum"), directory.join(self.package).join("main.go")] {
            // A module without dependencies has no go.sum.
            if file.is_file() || !file.ends_with("go.sum") {
                hash.update(fs::read(&file).with_context(|| format!("{}: cannot read", file.display()))?);
            }
        }
        Ok(crate::image::hexadecimal(&hash.finalize()))
    }
}

/// Returns a Go that is new enough.
pub(crate) fn go() -> Result<PathBuf> {
    let script = repository().join("tests/peers/go-1.26");
    require("go")?;
    Ok(finish(&mut Command::new(script), "")?.trim().into())
}
