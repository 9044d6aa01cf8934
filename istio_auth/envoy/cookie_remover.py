"""Removes verified tokens from cookies: Envoy's jwt_authn filter removes them from headers and parameters only."""

from __future__ import annotations

import json

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension
from istio_auth.envoy.token_rules import TokenRules

_LUA = """\
local taken = {%s}

function envoy_on_request(handle)
  local headers, kept, found = handle:headers(), {}, false
  for i = 0, headers:getNumValues("cookie") - 1 do
    for cookie in string.gmatch(headers:getAtIndex("cookie", i), "[^;]+") do
      if taken[string.match(cookie, "^%%s*(.-)%%s*=")] then
        found = true
      else
        table.insert(kept, string.match(cookie, "^%%s*(.-)%%s*$"))
      end
    end
  end
  if found then
    headers:remove("cookie")
    if #kept > 0 then
      headers:add("cookie", table.concat(kept, "; "))
    end
  end
end
"""


def token_cookie_remover(rules: TokenRules) -> list[JSON]:
    """The filter, after jwt_authn, that removes cookies with tokens; an empty list if no rule has such a cookie."""
    forwarded = {cookie for rule in rules.rules if rule.forward_original_token for cookie in rule.places.cookies}
    names = sorted({cookie for rule in rules.rules for cookie in rule.places.cookies} - forwarded)
    if not names:
        return []
    # The name of a cookie has no character that must be escaped in a Lua string.
    source = _LUA % ", ".join(f"[{json.dumps(name)}] = true" for name in names)
    message = "envoy.extensions.filters.http.lua.v3.Lua"
    return [extension("envoy.filters.http.lua", message, {"default_source_code": {"inline_string": source}})]
