//! Goes on where an earlier observer was: takes its maps if they are laid out alike, its attachments in any case, and what its
//! maps say if they are not.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    path::Path,
};

use aya::maps::HashMap;
use observer_common::{Cgroup, names};
use serde::{Deserialize, Serialize};

use super::{
    Error, Kernel, Options, attach::Link, folder::Folder, layout::is_name, past::Past, shape::Shape, store::Store, sys,
};
use crate::discovery::Sidecar;

/// What outlives the process: the folder of pins, and what is known of the maps in it.
#[derive(Debug)]
pub struct Pins {
    folder: Folder,
    store: Store,
}

/// What must be remembered of the maps that are pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// What maps that are no more have counted.
    pub(super) past: Past,
    /// How to read the maps of each layout that is here.
    shapes: BTreeMap<String, Shape>,
    /// Layouts whose figures are in `past` already, if their maps are still there.
    #[serde(deserialize_with = "layouts")]
    merged: BTreeSet<String>,
}

/// Their folders will be removed, so that each must be a layout's name and cannot lead elsewhere.
fn layouts<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let names = BTreeSet::<String>::deserialize(deserializer)?;
    match names.iter().find(|name| !is_name(name)) {
        Some(other) => Err(serde::de::Error::custom(format!("{other:?} is no layout's name"))),
        None => Ok(names),
    }
}

impl Pins {
    /// Takes the folder for this process, and yields what was remembered in it.
    ///
    /// # Errors
    /// The folder or what is in it cannot be used; the message says what to do.
    pub fn open(path: &Path) -> Result<(Self, Option<Vec<u8>>), Error> {
        let folder = Folder::open(path)?;
        let (store, text) = Store::open(&folder.state())?;
        Ok((Self { folder, store }, text))
    }

    /// What was remembered cannot be used, for this reason.
    pub fn unreadable(&self, reason: impl std::fmt::Display) -> Error {
        Error::state(&self.folder.state(), reason)
    }
}

impl Kernel {
    /// As [`Kernel::load`], with the maps that are pinned, and in place of the programs that are attached. `save` keeps what
    /// it is given; it is called before anything depends on it.
    ///
    /// # Errors
    /// As [`Kernel::load`], or what is pinned cannot be taken over.
    pub fn resume(
        options: &Options,
        pins: Pins,
        mut remembered: Remembered,
        mut save: impl FnMut(&mut Store, &Remembered) -> Result<(), Error>,
    ) -> Result<(Self, Store), Error> {
        let Pins { folder, mut store } = pins;
        let layout = super::layout_name(options)?;
        // Layouts merged by an observer that was killed before it could remove their maps.
        remembered.merged.iter().try_for_each(|merged| folder.remove_maps(merged).map(drop))?;
        remembered.forget_merged();
        let others = remembered.others(&folder, &layout)?;
        remembered.shapes.insert(layout.clone(), Shape::default());
        save(&mut store, &remembered)?;
        let maps = folder.make_maps(&layout)?;
        let mut kernel = Self::load_with(options, Some(&maps))?;
        kernel.take_over(&folder)?;
        for other in others {
            remembered.merge(&folder, other)?;
        }
        save(&mut store, &remembered)?;
        remembered.merged.iter().try_for_each(|merged| folder.remove_maps(merged).map(drop))?;
        remembered.forget_merged();
        (kernel.remembered, kernel.folder) = (remembered, Some(folder));
        Ok((kernel, store))
    }

    /// What the next observer must know of the maps.
    #[must_use]
    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// A sidecar was counted by an earlier observer; its series are in the maps.
    pub fn recall(&mut self, sidecar: &Sidecar) {
        self.tenants.came(sidecar.id, sidecar.cgroup_id, &sidecar.cgroup);
        if !self.links.contains_key(&sidecar.cgroup_id) {
            self.tenants.left(sidecar.cgroup_id);
        }
    }

    /// Puts the programs in the place of those that are attached, one after the other; a packet meets the one or the other.
    fn take_over(&mut self, folder: &Folder) -> Result<(), Error> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for link in folder.links()? {
            let fd = sys::open(&link.path).map_err(|error| Error::link(&link.path, error))?;
            match names::ATTACHED.iter().position(|name| *name == link.program) {
                Some(place) => known.push((link.cgroup_id, place, link.path, fd)),
                None => unknown.push(Link::pinned(fd, link.path)),
            }
        }
        // One cgroup after the other, with nothing else between, so that few packets meet old and new programs.
        known.sort_unstable_by_key(|&(cgroup_id, place, ..)| (cgroup_id, place));
        for (cgroup_id, place, path, fd) in known {
            let name = names::ATTACHED[place];
            let program = self.ebpf.program(name).ok_or(Error::Missing { name })?;
            let program = program.fd().map_err(|source| Error::load(name, source))?;
            let updated = sys::update_link(fd.as_fd(), program.as_fd());
            let kept = Link::pinned(fd, path.clone());
            match updated {
                Ok(()) => drop(self.links.entry(cgroup_id).or_default().insert(name, kept)),
                // The cgroup is no more, and the link leads nowhere.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => kept.detach(),
                Err(error) => return Err(Error::link(&path, error)),
            }
        }
        unknown.into_iter().for_each(Link::detach);
        Ok(())
    }

    /// Forgets what is neither among these cgroups nor among these processes: they ended while nobody looked.
    pub fn retain(&mut self, cgroups: &BTreeSet<u64>, processes: &BTreeSet<u32>) {
        let ended: Vec<u64> = self.links.keys().filter(|id| !cgroups.contains(id)).copied().collect();
        ended.into_iter().for_each(|id| self.detach(id));
        if let Ok(mut known) = self.map_mut::<HashMap<_, u64, Cgroup>>(names::CGROUPS) {
            let ended: Vec<u64> = known.keys().flatten().filter(|id| !cgroups.contains(id)).collect();
            ended.iter().for_each(|id| drop(known.remove(id)));
        }
        if let Ok(mut known) = self.map_mut::<HashMap<_, u32, u32>>(names::PROCESSES) {
            let ended: Vec<u32> = known.keys().flatten().filter(|pid| !processes.contains(pid)).collect();
            ended.iter().for_each(|pid| drop(known.remove(pid)));
        }
    }
}

impl Remembered {
    /// The layouts here but for our own, each of which can be read.
    fn others(&self, folder: &Folder, own: &str) -> Result<Vec<String>, Error> {
        let others: Vec<String> = folder.layouts()?.into_iter().filter(|layout| layout != own).collect();
        for layout in &others {
            self.shape(folder, layout)?;
        }
        Ok(others)
    }

    fn shape(&self, folder: &Folder, layout: &str) -> Result<&Shape, Error> {
        let shape = self.shapes.get(layout).ok_or("its layout is not known");
        shape
            .and_then(|shape| shape.obstacle().map_or(Ok(shape), Err))
            .map_err(|reason| Error::PinnedMap { path: folder.maps(layout), reason: reason.to_owned() })
    }

    /// Adds what the maps of another layout hold, now that no program counts there.
    fn merge(&mut self, folder: &Folder, layout: String) -> Result<(), Error> {
        let (shape, maps) = (self.shape(folder, &layout)?.clone(), folder.maps(&layout));
        let series = self.past.take(&maps, &shape);
        let series = series.map_err(|error| Error::PinnedMap { path: maps, reason: error.to_string() })?;
        tracing::warn!(
            "the maps of the build before have another layout: the totals of {series} series go on, connections that are open \
             are joined late, and the requests on them now are not counted"
        );
        let unknown = shape.unknown_counts();
        if !unknown.is_empty() {
            tracing::warn!(
                "this build does not know what the build before counted as {}: given up",
                unknown.join(", ")
            );
        }
        self.merged.insert(layout);
        Ok(())
    }

    fn forget_merged(&mut self) {
        let Self { shapes, merged, .. } = self;
        merged.iter().for_each(|layout| drop(shapes.remove(layout)));
        merged.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_layouts_name_folders_to_be_removed() {
        let read = |name: &str| serde_json::from_value::<Remembered>(serde_json::json!({ "merged": [name] }));
        assert_eq!(read("0123456789abcdef").unwrap().merged.len(), 1);
        let error = read("x/../../../../tmp").unwrap_err().to_string();
        assert!(error.contains("is no layout's name"), "{error}");
    }
}
