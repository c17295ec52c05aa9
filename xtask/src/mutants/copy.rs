//! A copy of the library's sources with some of them changed. A file that stays as it is is not written, so that Cargo builds
//! only what is different from the last time.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::workspace::Workspace;

pub(super) struct Copy<'w> {
    workspace: &'w Workspace,
    folder: PathBuf,
}

impl<'w> Copy<'w> {
    pub(super) fn new(workspace: &'w Workspace, folder: PathBuf) -> Self {
        Self { workspace, folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes it the library as it is now, with `changed` in place of the files of those names.
    pub(super) fn write(&self, changed: &BTreeMap<PathBuf, String>) -> Result<()> {
        let root = &self.workspace.root;
        let mut files = BTreeMap::new();
        let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
        let (manifest, members) = alone(&manifest)?;
        let left_out: Vec<PathBuf> = members.iter().map(|member| root.join(member)).collect();
        let is_part = |path: &Path| {
            let hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
            let built = path == self.workspace.target || path == root.join("target");
            !hidden && !built && !left_out.iter().any(|member| member == path)
        };
        collect(root, root, &is_part, &mut files)?;
        files.insert("Cargo.toml".into(), manifest.into_bytes());
        files.extend(changed.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())));

        let mut old = BTreeMap::new();
        if self.folder.exists() {
            collect(&self.folder, &self.folder, &|_| true, &mut old)?;
        }
        for name in old.keys().filter(|name| !files.contains_key(*name)) {
            fs::remove_file(self.folder.join(name))?;
        }
        for (name, content) in &files {
            if old.get(name) != Some(content) {
                let path = self.folder.join(name);
                fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
                fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// The manifest without the workspace's other members, and which these are.
fn alone(manifest: &str) -> Result<(String, Vec<PathBuf>)> {
    let mut manifest: Table = toml::from_str(manifest)?;
    let workspace =
        manifest.get_mut("workspace").and_then(Value::as_table_mut).context("Cargo.toml has no workspace")?;
    workspace.remove("default-members");
    let members = workspace.insert("members".to_owned(), Value::Array(Vec::new()));
    let members = members.and_then(|members| members.try_into().ok()).unwrap_or_default();
    Ok((toml::to_string(&manifest)?, members))
}

/// Every file below `folder` that is part of it, by its name from `root` on.
fn collect(
    root: &Path,
    folder: &Path,
    is_part: &impl Fn(&Path) -> bool,
    files: &mut BTreeMap<PathBuf, Vec<u8>>,
) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if !is_part(&path) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, is_part, files)?;
        } else {
            files.insert(path.strip_prefix(root)?.to_path_buf(), fs::read(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_no_other_members() {
        let (manifest, members) = alone("[workspace]\nmembers = [\"a\", \"b\"]\n[package]\nname = \"c\"").unwrap();
        assert_eq!(members, [PathBuf::from("a"), PathBuf::from("b")]);
        assert!(manifest.contains("members = []") && manifest.contains("name = \"c\""));
    }
}
