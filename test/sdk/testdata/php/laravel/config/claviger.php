<?php

// What the cache of the configuration holds, of a start before this one.
return getenv('CACHED') ? ['random' => getenv('CACHED')] : [];
