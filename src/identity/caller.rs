//! A caller, and the three things that bound one: scopes (of the credential), a role (in the workspace), and the
//! connections that a key may use.

use std::{fmt, net::IpAddr, num::NonZeroU32, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ApiKeyId, ConnectionId, TenantId, UserId},
    jobs::job::stored_names,
};

stored_names! {
    /// What somebody is in a workspace.
    Role {
        /// Everything, members and keys too.
        Owner = "owner",
        /// Writes and publishes, connects accounts.
        Editor = "editor",
        /// Looks.
        Viewer = "viewer",
    }
}

impl Role {
    /// The most that any credential of theirs can do.
    pub fn scopes(self) -> Scopes {
        match self {
            Self::Owner => Scopes::of([Scope::Workspace]),
            Self::Editor => Scopes::of([Scope::Read, Scope::Publish, Scope::Connections]),
            Self::Viewer => Scopes::of([Scope::Read]),
        }
    }
}

/// Whoever is calling, proved. A handler takes this as a parameter and is thereby closed to everyone else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The workspace the call is about.
    pub tenant: TenantId,
    pub user: UserId,
    /// What is left after the credential's scopes met the role.
    pub scopes: Scopes,
    pub role: Role,
    /// The key it came with; `None`: a person's own token.
    pub key: Option<ApiKeyId>,
    /// Requests that this key may make in a window, whatever its maker may; `None`: no limit of its own.
    pub key_limit: Option<NonZeroU32>,
    /// The only connections it may use; `None`: all of the workspace.
    pub connections: Option<Arc<[ConnectionId]>>,
    /// When its user showed who they are, in seconds of the epoch; `None`: it is no sign-in (a key, a local token).
    pub signed_in_at: Option<u64>,
    /// Where the call came from.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// With all that these scopes allow.
    pub fn new(tenant: TenantId, user: UserId, scopes: Scopes) -> Self {
        Self {
            tenant,
            user,
            scopes,
            role: Role::Owner,
            key: None,
            key_limit: None,
            connections: None,
            signed_in_at: None,
            address: None,
        }
    }

    /// The key, or else the person, by its id: for a note of who asked.
    pub fn who(&self) -> String {
        self.key.map_or_else(|| self.user.to_string(), |key| key.to_string())
    }

    /// An error that names what is missing and who can give it.
    pub fn require(&self, scope: Scope) -> Result<(), Forbidden> {
        if self.scopes.contain(scope) {
            return Ok(());
        }
        Err(if self.key.is_none() && !self.role.scopes().contain(scope) && scope != Scope::Admin {
            Forbidden::Role { role: self.role, scope }
        } else if self.key.is_some() {
            Forbidden::Key { scope }
        } else {
            Forbidden::Token { scope }
        })
    }

    /// The rows of connections, and of what was published on them, that this call may see and use.
    pub fn reach(&self) -> Reach<'_> {
        Reach { tenant: self.tenant, connections: self.connections.as_deref() }
    }

    pub fn may_use(&self, connection: ConnectionId) -> bool {
        self.reach().has(connection)
    }
}

/// The one place that says which connections are within reach: queries of connections take it instead of a tenant.
#[derive(Debug, Clone, Copy)]
pub struct Reach<'a> {
    pub tenant: TenantId,
    /// `None`: all of the tenant's.
    pub connections: Option<&'a [ConnectionId]>,
}

impl Reach<'_> {
    pub fn has(&self, connection: ConnectionId) -> bool {
        self.connections.is_none_or(|connections| connections.contains(&connection))
    }
}

/// Why a caller may not do something. The text is for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error(
        "You are {role} in this workspace, and this call needs the scope \"{scope}\". Ask an owner of the workspace \
         for another role."
    )]
    Role { role: Role, scope: Scope },
    #[error("This API key cannot do that: the call needs the scope \"{scope}\". {}", key_remedy(*scope))]
    Key { scope: Scope },
    #[error("This call needs a token with the scope \"{scope}\".")]
    Token { scope: Scope },
    #[error("This API key is limited to some connections. Use a key without that limit, or your own token.")]
    Limited,
}

fn key_remedy(scope: Scope) -> &'static str {
    match scope {
        Scope::Manage | Scope::Workspace => "Sign in as an owner of the workspace: keys never have it.",
        Scope::Read | Scope::Publish | Scope::Connections | Scope::Admin => {
            "Use a key that has it; its maker's role bounds a key as well."
        }
    }
}

/// What a credential may be used for: each is a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// See everything in the workspace.
    Read = 0b0_0001,
    /// Write, transform and publish, and steer what was started.
    Publish = 0b0_0010,
    /// Connect and disconnect accounts.
    Connections = 0b0_0100,
    /// Members, API keys, the audit log. No key has it.
    Manage = 0b0_1000,
    /// All of the above.
    Workspace = 0b0_1111,
    /// All failed jobs tried again, whosever they are; in person, also every workspace's audit log.
    Admin = 0b1_0000,
}

impl Scope {
    /// What contains others comes first.
    pub const ALL: [Self; 6] =
        [Self::Workspace, Self::Read, Self::Publish, Self::Connections, Self::Manage, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::Connections => "connections",
            Self::Manage => "manage",
            Self::Workspace => "workspace",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A set of [`Scope`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub fn of(scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope as u8))
    }

    pub const fn contain(self, scope: Scope) -> bool {
        self.0 & scope as u8 == scope as u8
    }

    /// Anything but to look.
    pub const fn may_write(self) -> bool {
        self.0 & !(Scope::Read as u8) != 0
    }

    /// No more than `most`; being an administrator is nothing that a workspace gives or takes.
    pub const fn within(self, most: Self) -> Self {
        Self(self.0 & (most.0 | Scope::Admin as u8))
    }

    pub const fn without(self, scope: Scope) -> Self {
        Self(self.0 & !(scope as u8))
    }

    /// An unknown scope grants nothing: it may come from a newer release.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |word: &str| Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
        Self::of(words.into_iter().filter_map(known))
    }

    /// As few words as say it.
    pub fn words(self) -> Vec<&'static str> {
        let mut rest = self.0;
        let mut words = Vec::new();
        for scope in Scope::ALL {
            if self.contain(scope) && rest & scope as u8 != 0 {
                rest &= !(scope as u8);
                words.push(scope.as_str());
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scope_grants_nothing() {
        let scopes = Scopes::parse("workspace superuser".split(' '));
        assert!(scopes.contain(Scope::Workspace) && !scopes.contain(Scope::Admin));
        assert_eq!(scopes.words(), ["workspace"]);
    }

    #[test]
    fn scopes_survive_their_words() {
        for bits in 0..32 {
            let scopes = Scopes(bits);
            assert_eq!(Scopes::parse(scopes.words()), scopes, "{bits:b}");
        }
    }

    #[test]
    fn a_role_bounds_what_a_credential_may_do_but_takes_nothing_from_an_administrator() {
        let all = Scopes::of(Scope::ALL);
        assert_eq!(all.within(Role::Viewer.scopes()).words(), ["read", "admin"]);
        assert_eq!(all.within(Role::Editor.scopes()).words(), ["read", "publish", "connections", "admin"]);
        assert_eq!(all.within(Role::Owner.scopes()).words(), ["workspace", "admin"]);
    }

    #[test]
    fn a_refusal_says_who_can_help() {
        let mut caller = Caller::new(TenantId::new(), UserId::new(), Role::Viewer.scopes());
        caller.role = Role::Viewer;
        assert!(caller.require(Scope::Publish).unwrap_err().to_string().contains("Ask an owner"));
        caller.key = Some(ApiKeyId::new());
        assert!(caller.require(Scope::Manage).unwrap_err().to_string().contains("Sign in as an owner"));
        assert_eq!(caller.require(Scope::Read), Ok(()));
    }
}
