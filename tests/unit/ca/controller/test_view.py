"""What counts as there: the snapshot, and what was answered for as long as the snapshot is behind."""

from __future__ import annotations

import pytest

from ca.controller.snapshot import AccountKey, WorkloadSecret
from ca.controller.view import View
from istio_auth.bundle import TrustBundle
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.secret_cluster import SecretCluster


@pytest.fixture
def cluster() -> SecretCluster:
    bundle = TrustBundle(TrustDomain("cluster.local"), ())
    cluster = SecretCluster(lambda: bundle)
    cluster.add_namespace()
    return cluster


def written_unseen(cluster: SecretCluster, view: View, key: AccountKey) -> WorkloadSecret:
    """We wrote a secret, and the snapshot does not show it yet."""
    shown = view.shown(key)
    cluster.late = True
    cluster.put(key)
    view.learn(key, cluster.secrets[key], shown=shown)
    return cluster.secrets[key]


def test_what_was_answered_counts_until_the_snapshot_catches_up_and_then_the_snapshot(cluster: SecretCluster) -> None:
    view, key = View(cluster), cluster.add_account()
    assert view.secret(key) is None
    ours = written_unseen(cluster, view, key)
    assert cluster.secret(key) is None
    assert view.secret(key) == ours
    cluster.show()
    cluster.remove(key)
    cluster.put(key, {}, mark="another")
    assert view.secret(key) == cluster.secret(key) != ours


def test_our_own_write_coming_back_is_no_news_and_everything_else_is(cluster: SecretCluster) -> None:
    view, key = View(cluster), cluster.add_account()
    written_unseen(cluster, view, key)
    assert view.notice(key)  # the account changed, or the namespace
    cluster.show()
    assert not view.notice(key)
    assert view.notice(key)
    written_unseen(cluster, view, key)
    cluster.put(key, mark="another")  # after us
    cluster.show()
    assert view.notice(key)


def test_a_secret_that_we_deleted_is_gone_also_while_the_snapshot_shows_it(cluster: SecretCluster) -> None:
    view, key = View(cluster), cluster.add_account()
    cluster.put(key)
    shown = view.shown(key)
    cluster.late = True
    cluster.remove(key)
    view.learn(key, None, shown=shown)
    assert cluster.secret(key) is not None
    assert view.secret(key) is None
    cluster.show()
    assert not view.notice(key)


def test_what_the_snapshot_never_shows_is_doubted_until_somebody_looks_again(cluster: SecretCluster) -> None:
    view, key = View(cluster), cluster.add_account()
    foreign = written_unseen(cluster, view, key)
    assert not view.doubts(key)
    view.doubt()
    assert view.doubts(key)
    view.learn(key, foreign, shown="")
    assert not view.doubts(key)
    view.doubt()
    cluster.show()
    view.notice(key)
    assert not view.doubts(key)
