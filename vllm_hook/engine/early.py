"""Checks the connector's settings when vLLM makes its configuration, before it loads a model.

vLLM asks its connector factory for the class at that moment, but gives a connector its settings only after the model
has been loaded. `watch` wraps the factory's method with the check.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from kvmarket.errors import AddressError, MisuseError, WrongAddressError
from kvmarket.registry.protocol.address import Address
from vllm_hook.engine import limits

_log = logging.getLogger("vllm.kvmarket")


def watch(factory: Any, name: str) -> None:
    """Have `check` called whenever vLLM asks its connector `factory` for a class. Call this once per process."""
    find = factory.get_connector_class

    @functools.wraps(find.__func__)
    def find_checked(cls: Any, kv_transfer_config: Any) -> Any:
        check(kv_transfer_config, name)
        return find.__func__(cls, kv_transfer_config)

    factory.get_connector_class = classmethod(find_checked)


def check(transfer_config: Any, name: str) -> None:
    """Check the settings of the connector with this name, alone or under MultiConnector.

    Wrong settings are logged as an error, and then raise MisuseError.
    """
    entries = [transfer_config]
    if transfer_config.kv_connector == "MultiConnector":
        listed = transfer_config.kv_connector_extra_config.get("connectors") or ()
        entries = [type(transfer_config)(**entry) for entry in listed if entry.get("kv_connector") == name]
    for entry in entries:
        if entry.kv_connector == name:
            try:
                _check_address(limits.settings_of(entry, transfer_config).address)
            except MisuseError as error:
                _log.error("kvmarket stops the engine before its model is loaded: %s", error)
                raise


def _check_address(address: str | None) -> None:
    """Raise MisuseError where no market can be at the address, whatever happens there by itself.

    A directory that is missing may be made yet, and another user may go: such an engine starts, and tries to join.
    """
    try:
        Address(address)
    except WrongAddressError as error:
        setting = "KVMARKET_ADDRESS" if address is None else 'kv_connector_extra_config, "address"'
        raise MisuseError(f"{setting}: {error}") from error
    except AddressError:
        return  # the line that says why it cannot join comes when it tries to
