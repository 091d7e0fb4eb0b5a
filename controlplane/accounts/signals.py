"""What other rooms may listen to. Rooms above this one connect to it; accounts knows none of them."""

from django.dispatch import Signal

# Sent after the commit of any change to API keys (issued, revoked). Carries `team_id`.
keys_changed = Signal()
