//! Reads the settings of kept traits.
use std::time::Duration;

use crate::config::build::ConfigBuilder;
use crate::config::parse;
use crate::config::types::{TraitsConfig, TraitsStore};
use crate::limits;

/// With the version of what is stored: a release that stores something else has another one.
const REDIS_PREFIX: &str = "edge-proxy:1:";

impl ConfigBuilder {
    /// `traits.*`.
    pub(super) fn traits(&mut self) -> TraitsConfig {
        TraitsConfig {
            store: self.traits_store(),
            path: self.read("traits.path", parse::optional_path, None),
            identities_max: self.read("traits.identities_max", parse::count, limits::TRAIT_IDENTITIES_MAX),
            bytes_max: self.read("traits.bytes_max", parse::trait_bytes, limits::TRAIT_BYTES_MAX),
            ttl: self.read("traits.ttl_seconds", parse::duration, Duration::ZERO),
            forward: self.traits_forward(),
            forward_interval: self.read(
                "traits.forward_interval_seconds",
                parse::interval,
                Duration::from_secs(10),
            ),
            redis_url: self.read("traits.redis_url", parse::optional_redis_url, None),
            redis_prefix: self.read("traits.redis_prefix", parse::text, REDIS_PREFIX.to_owned()),
            redis_ca_file: self.read("traits.redis_ca_file", parse::optional_path, None),
            require: self.read("traits.require", parse::boolean, false),
        }
    }

    fn traits_forward(&mut self) -> bool {
        let forward = self.read("traits.forward", parse::boolean, false);
        let store = self.read("traits.store", parse::traits_store, TraitsStore::None);
        let expected = "false, because traits.store is none: what is kept is forwarded";
        if forward && store == TraitsStore::None && self.reject("traits.forward", expected) {
            return self.traits_forward();
        }
        forward
    }

    fn traits_store(&mut self) -> TraitsStore {
        let store = self.read("traits.store", parse::traits_store, TraitsStore::None);
        let is_set = |path| self.raw.value(path).is_some_and(|(value, _)| !value.is_null());
        let has_folder = is_set("traits.path") || is_set("cache_dir");
        let has_redis = is_set("traits.redis_url");
        let expected = "none, memory or redis, because neither traits.path nor cache_dir is set";
        if store == TraitsStore::Disk && !has_folder && self.reject("traits.store", expected) {
            return self.traits_store();
        }
        let expected = "none, memory or disk, because traits.redis_url is not set";
        if store == TraitsStore::Redis && !has_redis && self.reject("traits.store", expected) {
            return self.traits_store();
        }
        store
    }
}
