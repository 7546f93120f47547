// The page of the command `ncp-callbacks view`.
import {render} from './index.js';

render();
