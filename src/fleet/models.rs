//! What a backend serves, as now known.

use std::sync::Arc;

use crate::config;

/// The models of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Models {
    /// Not asked, or no list came: it may serve any model.
    Unknown,
    /// Configured as `any`.
    Any,
    /// These, sorted.
    Known(Vec<Arc<str>>),
}

impl Models {
    /// What is known before the backend was asked.
    pub fn configured(models: &config::Models) -> Self {
        match models {
            config::Models::Auto => Self::Unknown,
            config::Models::Any => Self::Any,
            config::Models::List(names) => Self::listed(names.iter().cloned()),
        }
    }

    /// A list in its usual order.
    pub fn listed(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        Self::Known(names)
    }

    /// Whether a call for `model` may be sent there.
    pub fn may_serve(&self, model: &str) -> bool {
        match self {
            Self::Unknown | Self::Any => true,
            Self::Known(_) => self.lists(model),
        }
    }

    /// Whether `model` is on its list.
    pub fn lists(&self, model: &str) -> bool {
        self.names().binary_search_by(|name| (**name).cmp(model)).is_ok()
    }

    /// The names on its list.
    pub fn names(&self) -> &[Arc<str>] {
        match self {
            Self::Known(names) => names,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_list_may_serve_anything_and_a_known_one_what_it_lists() {
        assert!(Models::Unknown.may_serve("m") && !Models::Unknown.lists("m"));
        let models = Models::listed(["b".into(), "a".into(), "b".into()]);
        assert_eq!(models.names().len(), 2);
        assert!(models.may_serve("a") && models.may_serve("b") && !models.may_serve("c"));
    }
}
